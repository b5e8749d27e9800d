import math

import pytest
import torch
from torch.optim import SGD

from training.optimization.schedule import warmup_cosine


def rates(warmup: int, steps: int, done: int = 0) -> list[float]:
    """The learning rate of each step that is left, of a peak of 2."""
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = warmup_cosine(optimizer, warmup, steps, done)
    found = []
    for _ in range(done, steps):
        found.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return found


def test_the_rate_rises_along_a_line_and_falls_along_a_cosine() -> None:
    assert rates(2, 6) == pytest.approx(
        [0, 1, 2, *(1 + math.cos(math.pi * n / 4) for n in (1, 2, 3))]
    )


def test_without_a_warmup_the_first_step_has_the_peak() -> None:
    assert rates(0, 3)[0] == 2


@pytest.mark.parametrize("done", [1, 2, 5])
def test_a_resumed_schedule_has_the_same_rates(done: int) -> None:
    assert rates(2, 6, done) == rates(2, 6)[done:]
