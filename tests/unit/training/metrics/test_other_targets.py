"""Losses and maps of targets that are not the competition's: other levels, weights and numbers."""

import json

import numpy as np
import pytest
from numpy.typing import NDArray

from storage_schemas.targets import Targets
from training.metrics.calibration import Calibration, fit_calibration
from training.metrics.competition import (
    best_constants,
    competition_loss,
    exam_losses,
    exam_weights,
    target_losses,
)
from training.metrics.ensemble import average_predictions, fit_weights

LUMBAR = Targets(
    ("L1", "L2", "L3", "L4", "L5"), "any_fracture", ((4, 9), (1, 3), (1, 3), (1, 3), (1, 3), (2, 5))
)
PAIR = Targets.of(("C2",), "fractured")
EACH = pytest.mark.parametrize("targets", [LUMBAR, PAIR], ids=["lumbar", "pair"])


def make_exams(
    targets: Targets, studies: int, gap: float, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    random = np.random.default_rng(seed)
    levels = (random.random((studies, len(targets.levels))) < 0.2).astype(int)
    scores = random.normal(0, 1, levels.shape) + gap * levels
    return scores, np.column_stack([levels.max(axis=1), levels])


def test_the_weights_of_an_exam_are_those_of_its_labels() -> None:
    found = exam_weights([[0, 0, 0, 0, 0, 0], [1, 0, 1, 0, 0, 1]], LUMBAR)
    expected = [np.array([4, 1, 1, 1, 1, 2]) / 10, np.array([9, 1, 3, 1, 1, 5]) / 20]
    np.testing.assert_allclose(found, expected)
    assert exam_losses([[1, 1]], [[0.5, 0.25]], PAIR)[0] == pytest.approx(
        -(2 * np.log(0.5) + 2 * np.log(0.25)) / 4
    )
    assert exam_losses([[0, 0]], [[0.5, 0.25]], PAIR)[0] == pytest.approx(
        -(np.log(0.5) + np.log(0.75)) / 2
    )


def test_each_target_has_its_loss_under_its_own_name() -> None:
    labels = np.array([[0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 1]])
    losses = target_losses(labels, np.full(6, 0.5), LUMBAR)
    assert list(losses) == ["any_fracture", "L1", "L2", "L3", "L4", "L5"]
    assert list(losses.values()) == pytest.approx([np.log(2)] * 6)
    # Weights of L5: 2 of 10 in the first exam, 5 of 18 in the second.
    assert best_constants(labels, LUMBAR)[5] == pytest.approx((5 / 18) / (2 / 10 + 5 / 18))


@EACH
def test_labels_of_another_number_are_refused(targets: Targets) -> None:
    with pytest.raises(ValueError, match=rf"\(exams, {len(targets)}\)"):
        competition_loss(np.zeros((3, 8)), 0.5, targets)


@EACH
def test_a_calibrated_model_beats_the_constants_on_unseen_patients(targets: Targets) -> None:
    scores, labels = make_exams(targets, 300, 2.0)
    fitted = fit_calibration(scores, labels, labels, targets)
    assert (len(fitted.slopes), len(fitted.offsets)) == (len(targets.levels),) * 2
    assert len(fitted.priors) == len(targets)
    assert Calibration.from_json(json.loads(json.dumps(fitted.to_json()))) == fitted
    unseen, truth = make_exams(targets, 400, 2.0, seed=1)
    found = fitted.probabilities(unseen)
    assert found.shape == truth.shape
    constant = competition_loss(truth, best_constants(labels, targets), targets)
    assert competition_loss(truth, found, targets) < 0.8 * constant


@EACH
def test_the_patients_map_starts_at_the_noisy_or_of_whatever_levels_there_are(
    targets: Targets,
) -> None:
    # A single patient hardly moves the maps away from where they start.
    scores, labels = make_exams(targets, 1, 0.0)
    fitted = fit_calibration(scores, labels, make_exams(targets, 200, 0.0, seed=2)[1], targets)
    found = fitted.probabilities(scores)
    either = 1 - np.prod(1 - found[:, 1:], axis=1)
    np.testing.assert_allclose(found[:, 0], either, atol=0.05)


def test_weights_of_ones_own_move_the_maps() -> None:
    scores, labels = make_exams(PAIR, 200, 1.0)
    low, high = (
        fit_calibration(scores, labels, labels, Targets(("C2",), "any", ((1, 1), (1, positive))))
        for positive in (1, 20)
    )
    assert (high.probabilities(scores)[:, 1] > low.probabilities(scores)[:, 1]).all()


@EACH
def test_an_ensemble_is_fitted_under_the_targets_weights(targets: Targets) -> None:
    _, labels = make_exams(targets, 80, 0.0)
    random = np.random.default_rng(3)
    tables = [
        1 / (1 + np.exp(-(3 * labels - 2 + noise * random.normal(size=labels.shape))))
        for noise in (1.0, 3.0)
    ]
    weights = fit_weights(labels, tables, targets)
    assert weights[0] > weights[1]
    loss = competition_loss(labels, average_predictions(weights.tolist(), tables), targets)
    assert loss <= min(competition_loss(labels, table, targets) for table in tables) + 1e-9
