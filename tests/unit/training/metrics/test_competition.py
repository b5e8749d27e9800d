"""Values worked out by hand from the competition's formula."""

import math
from typing import Any

import numpy as np
import pytest

from training.metrics.competition import (
    best_constants,
    bootstrap_difference,
    class_prior,
    competition_loss,
    exam_losses,
    exam_weights,
    target_losses,
)

INTACT = [0, 0, 0, 0, 0, 0, 0, 0]
C3 = [1, 0, 0, 1, 0, 0, 0, 0]
C2_C7 = [1, 0, 1, 0, 0, 0, 0, 1]
LN2 = math.log(2)


@pytest.mark.parametrize(
    ("labels", "weights"),
    [
        (INTACT, np.array([7, 1, 1, 1, 1, 1, 1, 1]) / 14),
        (C3, np.array([14, 1, 1, 2, 1, 1, 1, 1]) / 22),
        (C2_C7, np.array([14, 1, 2, 1, 1, 1, 1, 2]) / 23),
    ],
)
def test_fractured_targets_weigh_twice_and_the_patient_as_much_as_seven_levels(
    labels: list[int], weights: Any
) -> None:
    np.testing.assert_allclose(exam_weights([labels]), [weights])


@pytest.mark.parametrize("labels", [[INTACT], [C3], [INTACT, C3, C2_C7]])
def test_one_half_costs_ln_2_whatever_the_labels(labels: list[list[int]]) -> None:
    assert competition_loss(labels, np.full(8, 0.5)) == pytest.approx(LN2)
    assert list(target_losses(labels, np.full(8, 0.5)).values()) == pytest.approx([LN2] * 8)


@pytest.mark.parametrize(
    ("labels", "probabilities", "loss"),
    [
        (INTACT, [0.2] * 8, 0.2231435513),
        (INTACT, [0.5, 0, 0, 0, 0, 0, 0, 0], LN2 / 2),
        (C3, [0.8, 0.1, 0.1, 0.5, 0.1, 0.1, 0.1, 0.1], 0.2337485),
        (C2_C7, [0.5, 0, 1, 0, 0, 0, 0, 0.25], (14 * LN2 + 2 * 2 * LN2) / 23),
        (C3, C3, 0.0),
    ],
)
def test_the_loss_of_an_exam_is_what_comes_out_by_hand(
    labels: list[int], probabilities: list[float], loss: float
) -> None:
    assert exam_losses([labels], [probabilities])[0] == pytest.approx(loss, abs=1e-7)


def test_the_score_is_the_mean_over_exams_and_not_over_weights() -> None:
    half_right = np.array([INTACT, [0.5] * 8])
    assert competition_loss([INTACT, C3], half_right) == pytest.approx(LN2 / 2)


def test_the_loss_of_a_target_is_weighted_by_its_share_of_each_exam() -> None:
    found = target_losses([INTACT, C3], np.array([[0.5] * 8, C3]))
    assert found["patient_overall"] == pytest.approx(LN2 * (1 / 2) / (1 / 2 + 14 / 22))
    assert found["C1"] == pytest.approx(LN2 * (1 / 14) / (1 / 14 + 1 / 22))


@pytest.mark.parametrize(
    ("labels", "probabilities", "clipped"),
    [(C3, [0.0] * 8, 16 / 22), (INTACT, [1.0] * 8, 1.0), (INTACT, [0.0, 1] + [0.0] * 6, 1 / 14)],
)
def test_certainty_that_is_wrong_costs_the_clip_and_not_infinity(
    labels: list[int], probabilities: list[float], clipped: float
) -> None:
    assert exam_losses([labels], [probabilities])[0] == pytest.approx(
        clipped * 15 * math.log(10), rel=1e-4
    )


def test_the_best_constants_are_the_weighted_shares() -> None:
    np.testing.assert_allclose(
        best_constants([INTACT, C3]), [14 / 25, 0, 0, 14 / 25, 0, 0, 0, 0], atol=1e-15
    )
    np.testing.assert_allclose(class_prior([INTACT, C3, C3, C2_C7])[[0, 2, 3]], [0.75, 0.25, 0.5])


@pytest.mark.parametrize("step", [-0.02, 0.02])
@pytest.mark.parametrize("target", range(8))
def test_no_constant_near_the_best_one_is_better(target: int, step: float) -> None:
    labels = [INTACT, C3, C2_C7, [1, 1, 0, 0, 1, 1, 1, 0]]
    best = best_constants(labels)
    other = best.copy()
    other[target] += step
    assert competition_loss(labels, best) < competition_loss(labels, other)


def test_the_bootstrap_of_a_constant_gain_is_that_gain() -> None:
    losses = np.linspace(0, 1, 30)
    assert bootstrap_difference(losses + 0.25, losses, seed=1) == pytest.approx((0.25, 0.25))


def test_the_bootstrap_interval_narrows_with_more_patients_and_holds_the_mean() -> None:
    random = np.random.default_rng(0)
    few, many = random.normal(0.3, 1, 20), random.normal(0.3, 1, 500)
    widths = []
    for gains in (few, many):
        low, high = bootstrap_difference(gains, np.zeros(gains.size), seed=2, resamples=2000)
        assert low < gains.mean() < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 3


@pytest.mark.parametrize("shape", [(8,), (2, 7), (0, 8), (1, 2, 8)])
def test_labels_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(exams, 8\)"):
        competition_loss(np.zeros(shape), np.full(8, 0.5))


@pytest.mark.parametrize("shape", [(7,), (3, 8), (2, 7)])
def test_probabilities_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="shape"):
        competition_loss([INTACT, C3], np.full(shape, 0.5))
