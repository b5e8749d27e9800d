"""Confidence intervals of losses, and curves."""

import numpy as np
import pytest

from storage_schemas.targets import COMPETITION
from training.evaluation.evaluate import _curves, _loss_intervals
from training.metrics.competition import competition_loss, target_losses


def test_intervals_of_losses_are_those_of_the_repeated_exams() -> None:
    random = np.random.default_rng(0)
    labels = (random.random((30, 8)) < 0.3).astype(np.int64)
    predicted = random.random((30, 8))
    weights = np.vstack([np.ones(30), random.multinomial(30, [1 / 30] * 30, 20)])
    found = _loss_intervals(labels, predicted, weights, COMPETITION)
    assert list(found) == ["all", *COMPETITION.columns]
    sampled = [
        (np.repeat(labels, n, 0), np.repeat(predicted, n, 0)) for n in weights[1:].astype(int)
    ]
    whole = [competition_loss(*exams, COMPETITION) for exams in sampled]
    assert found["all"] == pytest.approx(np.quantile(whole, [0.025, 0.975]))
    third = [target_losses(*exams, COMPETITION)["C3"] for exams in sampled]
    assert found["C3"] == pytest.approx(np.quantile(third, [0.025, 0.975]))


def test_unknown_labels_are_in_no_interval_and_in_no_curve() -> None:
    random = np.random.default_rng(0)
    labels = (random.random((30, 8)) < 0.3).astype(np.float64)
    predicted, weights = random.random((30, 8)), random.integers(0, 3, (20, 30)).astype(np.float64)
    labels[::2, 3], labels[:, 5] = np.nan, np.nan
    found = _loss_intervals(labels, predicted, weights, COMPETITION)
    assert found["C5"] is None, "no known label"
    changed = np.where(np.isnan(labels), 1e-9, predicted)
    assert found == _loss_intervals(labels, changed, weights, COMPETITION)
    known = labels[1::2, 3], predicted[1::2, 3]
    assert _curves(labels[:, 3], predicted[:, 3]) == _curves(*known)
    assert set(_curves(labels[:, 5], predicted[:, 5]).values()) == {None}


def test_a_curve_of_both_classes_needs_both() -> None:
    predicted = np.array([0.1, 0.4, 0.8])
    whole = _curves(np.zeros(3, np.int64), predicted)
    assert (whole["roc"], whole["precision_recall"]) == (None, None)
    stale_statistics = _curves(np.array([0, 1, 1]), predicted)
    assert stale_statistics["roc"] == ((0.0, 0.0), (0.0, 0.5), (0.0, 1.0), (1.0, 1.0))
    assert stale_statistics["precision_recall"] is not None
    assert stale_statistics["precision_recall"][-1] == (0.0, 1.0)
    assert stale_statistics["calibration"] == ((0.1, 0.0), (0.4, 1.0), (0.8, 1.0))
