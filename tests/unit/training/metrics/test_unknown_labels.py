"""An unknown label (NaN) counts in no loss, constant, map, weight or metric."""

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from storage_schemas.targets import COMPETITION
from training.metrics.calibration import fit_calibration
from training.metrics.competition import (
    best_constants,
    class_prior,
    competition_loss,
    cross_entropy,
    exam_losses,
    exam_weights,
    target_losses,
)
from training.metrics.ensemble import fit_weights
from training.metrics.rank_metrics import brier_score, rank_metrics

Floats = NDArray[np.float64]
X = math.nan
LOG = math.log
GUESS = [0.8, 0.1, 0.1, 0.5, 0.1, 0.1, 0.1, 0.1]

BY_HAND: dict[str, tuple[list[float], float]] = {
    "fractured level": (
        [1, 0, 0, X, 0, 0, 0, 0],
        -(14 * LOG(0.8) + 6 * LOG(0.9)) / 20,
    ),
    "intact level": (
        [1, 0, X, 1, 0, 0, 0, 0],
        -(14 * LOG(0.8) + 2 * LOG(0.5) + 5 * LOG(0.9)) / 21,
    ),
    "patient": ([X, 0, 0, 1, 0, 0, 0, 0], -(2 * LOG(0.5) + 6 * LOG(0.9)) / 8),
    "levels": ([1, X, X, X, X, X, X, X], -LOG(0.8)),
    "all but one level": ([X, X, X, X, X, X, X, 1], -LOG(0.1)),
}


def make_exams(studies: int = 120, seed: int = 0) -> tuple[Floats, Floats]:
    """Scores that tell fractured levels from intact ones, and labels."""
    random = np.random.default_rng(seed)
    levels = (random.random((studies, 7)) < 0.2).astype(np.float64)
    scores = random.normal(0, 1, (studies, 7)) + 2 * levels
    return scores, np.column_stack([levels.max(axis=1), levels])


@pytest.mark.parametrize(("labels", "loss"), BY_HAND.values(), ids=BY_HAND.keys())
def test_the_loss_of_an_exam_is_that_of_its_known_targets_by_hand(
    labels: list[float], loss: float
) -> None:
    assert exam_losses([labels], [GUESS], COMPETITION) == pytest.approx([loss])
    assert competition_loss([labels], [GUESS], COMPETITION) == pytest.approx(loss)
    weights = exam_weights([labels], COMPETITION)[0]
    assert weights.sum() == pytest.approx(1)
    assert (weights == 0).tolist() == np.isnan(labels).tolist()


@pytest.mark.parametrize("guess", [0.0, 0.3, 1.0])
def test_the_probability_of_an_unknown_target_is_not_scored(guess: float) -> None:
    labels, loss = BY_HAND["fractured level"]
    changed = [*GUESS[:3], guess, *GUESS[4:]]
    assert competition_loss([labels], [changed], COMPETITION) == pytest.approx(loss)
    assert np.isnan(cross_entropy([labels], [changed])[0]).tolist() == np.isnan(labels).tolist()


def test_an_exam_without_known_labels_is_not_in_the_mean() -> None:
    labels = [BY_HAND["patient"][0], [X] * 8, BY_HAND["levels"][0]]
    losses = exam_losses(labels, [GUESS] * 3, COMPETITION)
    assert np.isnan(losses).tolist() == [False, True, False]
    expected = (BY_HAND["patient"][1] + BY_HAND["levels"][1]) / 2
    assert competition_loss(labels, [GUESS] * 3, COMPETITION) == pytest.approx(expected)
    assert not exam_weights(labels, COMPETITION)[1].any()


def test_a_probability_that_is_not_a_number_is_not_taken_for_an_unknown_label() -> None:
    labels, broken = BY_HAND["fractured level"][0], [0.8, X, *GUESS[2:]]
    assert math.isnan(competition_loss([labels, labels], [GUESS, broken], COMPETITION))


def test_constants_and_priors_are_those_of_the_known_labels() -> None:
    labels = np.array([[1, X, 1], [0, 0, X], [0, 0, 0], [1, 1, 0]])
    labels = np.column_stack([labels, np.zeros((4, 5))])
    assert class_prior(labels)[:4] == pytest.approx([1 / 2, 1 / 3, 1 / 3, 0])
    first, second = exam_weights(labels, COMPETITION)[:, 1:3].T
    assert best_constants(labels, COMPETITION)[1:3] == pytest.approx(
        [first[3] / first[1:].sum(), second[0] / second[[0, 2, 3]].sum()]
    )


def test_no_constants_are_better_than_the_best_constants() -> None:
    _, labels = make_exams()
    labels[np.random.default_rng(1).random(labels.shape) < 0.4] = X
    best = best_constants(labels, COMPETITION)
    loss = competition_loss(labels, np.tile(best, (len(labels), 1)), COMPETITION)
    for change in (-0.02, 0.02):
        for column in range(8):
            other = best + change * (np.arange(8) == column)
            other = np.tile(other, (len(labels), 1))
            assert competition_loss(labels, other, COMPETITION) > loss


def test_a_level_without_known_labels_gets_the_rate_of_all_levels() -> None:
    labels = np.zeros((4, 8))
    labels[0, [0, 2]] = 1
    labels[:, 3] = X
    assert class_prior(labels)[3] == pytest.approx(1 / 24)
    assert math.isnan(target_losses(labels, np.full((4, 8), 0.5), COMPETITION)["C3"])
    labels[:, 1:] = X
    assert class_prior(labels)[1:] == pytest.approx([0.5] * 7)
    assert best_constants(labels, COMPETITION)[1:] == pytest.approx([0.5] * 7)
    labels[:] = X
    assert class_prior(labels)[0] == 0.5


def test_known_labels_give_equal_results_as_integers_and_as_floats() -> None:
    scores, labels = make_exams()
    whole: Any = labels.astype(np.int64)
    p = 1 / (1 + np.exp(-np.column_stack([scores.max(axis=1), scores])))
    for function in (competition_loss, exam_losses):
        assert np.array_equal(function(whole, p, COMPETITION), function(labels, p, COMPETITION))
    assert fit_calibration(scores, whole, whole, COMPETITION) == fit_calibration(
        scores, labels, labels, COMPETITION
    )


def test_studies_without_known_labels_do_not_move_the_calibration() -> None:
    scores, labels = make_exams()
    # The same scores twice keep their mean and standard deviation.
    twice = np.concatenate([scores, scores])
    unknown = np.concatenate([labels, np.full_like(labels, X)])
    found = fit_calibration(twice, unknown, labels, COMPETITION)
    expected = fit_calibration(scores, labels, labels, COMPETITION)
    assert found.slopes == pytest.approx(expected.slopes, rel=1e-6)
    assert found.offsets == pytest.approx(expected.offsets, rel=1e-6)
    assert (found.patient_slope, found.patient_offset) == pytest.approx(
        (expected.patient_slope, expected.patient_offset), rel=1e-6
    )


@pytest.mark.parametrize("target", [0, 3])
def test_unknown_labels_of_a_target_are_not_calibrated_as_intact(target: int) -> None:
    scores, labels = make_exams(600)
    train = labels.copy()
    whole = fit_calibration(scores, labels, train, COMPETITION).probabilities(scores)
    hidden, intact = labels.copy(), labels.copy()
    hidden[::2, target], intact[::2, target] = X, 0
    unknown = fit_calibration(scores, hidden, train, COMPETITION).probabilities(scores)
    taken = fit_calibration(scores, intact, train, COMPETITION).probabilities(scores)
    error = np.abs(unknown - whole)[:, target].mean()
    assert error < 0.02
    assert error < np.abs(taken - whole)[:, target].mean() / 3


def test_ensemble_weights_do_not_depend_on_what_is_predicted_for_unknown_targets() -> None:
    _, labels = make_exams()
    random = np.random.default_rng(3)
    tables = [
        1 / (1 + np.exp(-(3 * labels - 2 + noise * random.normal(size=labels.shape))))
        for noise in (1.0, 1.5)
    ]
    known = random.random(labels.shape) < 0.7
    hidden = np.where(known, labels, X)
    expected = fit_weights(hidden, tables, COMPETITION)
    changed = [np.where(known, table, guess) for table, guess in zip(tables, (0.0, 1), strict=True)]
    assert fit_weights(hidden, changed, COMPETITION) == pytest.approx(expected, abs=1e-6)
    more = [np.concatenate([table, table]) for table in tables]
    unknown = np.concatenate([hidden, np.full_like(hidden, X)])
    assert fit_weights(unknown, more, COMPETITION) == pytest.approx(expected, abs=1e-6)
    assert expected.sum() == pytest.approx(1)


def test_rank_metrics_and_brier_score_are_those_of_the_known_exams() -> None:
    random = np.random.default_rng(0)
    labels = (random.random(60) < 0.3).astype(np.float64)
    scores = np.round(np.clip(random.normal(0.4 + 0.2 * labels, 0.2), 0, 1), 1)
    weights = random.integers(0, 3, (5, 60)).astype(np.float64)
    unknown = random.random(60) < 0.3
    hidden = np.where(unknown, X, labels)
    found = rank_metrics(hidden, scores, weights) | brier_score(hidden, scores, weights)
    kept = labels[~unknown], scores[~unknown], weights[:, ~unknown]
    for name, values in (rank_metrics(*kept) | brier_score(*kept)).items():
        np.testing.assert_allclose(found[name], values)


def test_exams_without_known_labels_have_no_metrics() -> None:
    nothing, weights = np.full(3, X), np.ones((2, 3))
    found = rank_metrics(nothing, [0.1, 0.2, 0.3], weights)
    found |= brier_score(nothing, [0.1, 0.2, 0.3], weights)
    assert sorted(found) == ["auc", "average_precision", "brier", "sensitivity"]
    assert all(np.isnan(values).tolist() == [True, True] for values in found.values())
