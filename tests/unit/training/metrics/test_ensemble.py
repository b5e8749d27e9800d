import json

import numpy as np
import pytest
from numpy.typing import NDArray

from training.metrics.competition import competition_loss
from training.metrics.ensemble import RoundEnsemble, average_predictions, fit_weights


def make_rounds(
    noises: tuple[float, ...], studies: int = 60, seed: int = 0
) -> tuple[NDArray[np.int64], list[NDArray[np.float64]]]:
    """Labels, and probabilities of each round with its noise."""
    random = np.random.default_rng(seed)
    levels = (random.random((studies, 7)) < 0.15).astype(np.int64)
    labels = np.column_stack([levels.max(axis=1), levels])
    tables = [
        1 / (1 + np.exp(-(3 * labels - 2 + noise * random.normal(size=labels.shape))))
        for noise in noises
    ]
    return labels, tables


def test_no_weights_on_a_fine_grid_are_better() -> None:
    labels, tables = make_rounds((1.5, 2.0, 3.0))
    found = competition_loss(labels, average_predictions(fit_weights(labels, tables), tables))
    steps = np.linspace(0, 1, 41)
    grid = [
        competition_loss(labels, average_predictions([a, b, 1 - a - b], tables))
        for a in steps
        for b in steps
        if a + b <= 1
    ]
    assert found <= min(grid) + 1e-6


@pytest.mark.parametrize("noises", [(1.0,), (1.0, 1.0), (0.5, 4.0, 4.0), (2.0,) * 6])
def test_weights_are_convex(noises: tuple[float, ...]) -> None:
    labels, tables = make_rounds(noises)
    weights = fit_weights(labels, tables)
    assert (weights >= 0).all()
    assert weights.sum() == pytest.approx(1)


def test_a_round_that_adds_nothing_gets_nothing() -> None:
    labels, (good, _) = make_rounds((0.3, 1.0))
    worse = np.clip(1 - good, 0.01, 0.99)
    assert fit_weights(labels, [worse, good]).tolist() == [0.0, 1.0]


def test_rounds_that_err_apart_are_better_together() -> None:
    labels, tables = make_rounds((2.5, 2.5))
    losses = [competition_loss(labels, table) for table in tables]
    assert (
        competition_loss(labels, average_predictions(fit_weights(labels, tables), tables))
        < min(losses) - 0.01
    )


def test_certain_and_wrong_rounds_do_not_spoil_the_fit() -> None:
    labels, (good,) = make_rounds((1.0,))
    sure = (1 - labels).astype(np.float64)
    assert fit_weights(labels, [sure, good]).tolist() == [0.0, 1.0]


def test_an_ensemble_averages_its_rounds_and_reads_back_equal() -> None:
    stack = RoundEnsemble((1, 3), (0.25, 0.75), 0.5)
    tables = {number: np.full((2, 8), number / 10) for number in (1, 2, 3)}
    np.testing.assert_allclose(stack.average_predictions(tables), np.full((2, 8), 0.25))
    assert RoundEnsemble.from_json(json.loads(json.dumps(stack.to_json()))) == stack
