import torch
from torch import Tensor, nn

from training.optimization.averaging import (
    keeps_statistics,
    recount_statistics,
    resume_ema,
    start_ema,
)


def follow(keep: float, weights: list[float], split: int = 99) -> Tensor:
    """The EMA of a weight that is 1 at first and then takes these values, resumed at a step."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    ema = start_ema(model, keep)
    for step, weight in enumerate(weights):
        if step == split:
            left = ema.module.state_dict()
            ema = start_ema(model, keep)
            ema.module.load_state_dict(left)
            resume_ema(ema, step)
        nn.init.constant_(model.weight, weight)
        ema.update_parameters(model)
    return ema.module.weight.detach()


def test_an_ema_forgets_its_start_soon_and_then_keeps_as_much_as_it_may() -> None:
    torch.testing.assert_close(follow(0.9, [0.0]).item(), 1 / 10)
    torch.testing.assert_close(follow(0.9, [0.0, 0.0]).item(), 1 / 10 * 2 / 11)
    torch.testing.assert_close(follow(0.15, [0.0, 0.0]).item(), 1 / 10 * 0.15)


def test_a_resumed_ema_has_the_same_weights() -> None:
    weights = [0.3, -1.0, 0.7, 0.1, 2.0]
    assert torch.equal(follow(0.5, weights, split=2), follow(0.5, weights))


def test_statistics_are_the_mean_over_the_batches_and_the_momentum_stays() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2, momentum=0.3))
    assert keeps_statistics(model)
    recount_statistics(model, [torch.full((4, 2), value) for value in (1.0, 2.0, 6.0)])
    norm = model[0]
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_mean is not None
    assert norm.running_mean.tolist() == [3, 3]
    assert norm.momentum == 0.3
    assert not model.training


def test_a_model_without_batch_normalisations_keeps_no_statistics() -> None:
    assert not keeps_statistics(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))
