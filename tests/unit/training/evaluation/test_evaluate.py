"""Confidence intervals of losses, and curves."""

import numpy as np
import pytest

from storage_schemas.vertebrae import LABEL_COLUMNS
from training.evaluation.evaluate import _curves, _loss_intervals
from training.metrics.competition import competition_loss, target_losses


def test_intervals_of_losses_are_those_of_the_repeated_exams() -> None:
    random = np.random.default_rng(0)
    labels = (random.random((30, 8)) < 0.3).astype(np.int64)
    said = random.random((30, 8))
    weights = np.vstack([np.ones(30), random.multinomial(30, [1 / 30] * 30, 20)])
    found = _loss_intervals(labels, said, weights)
    assert list(found) == ["all", *LABEL_COLUMNS]
    sampled = [(np.repeat(labels, n, 0), np.repeat(said, n, 0)) for n in weights[1:].astype(int)]
    whole = [competition_loss(*exams) for exams in sampled]
    assert found["all"] == pytest.approx(np.quantile(whole, [0.025, 0.975]))
    third = [target_losses(*exams)["C3"] for exams in sampled]
    assert found["C3"] == pytest.approx(np.quantile(third, [0.025, 0.975]))


def test_a_curve_of_both_classes_needs_both() -> None:
    said = np.array([0.1, 0.4, 0.8])
    whole = _curves(np.zeros(3, np.int64), said)
    assert (whole["roc"], whole["precision_recall"]) == (None, None)
    stale_statistics = _curves(np.array([0, 1, 1]), said)
    assert stale_statistics["roc"] == ((0.0, 0.0), (0.0, 0.5), (0.0, 1.0), (1.0, 1.0))
    assert stale_statistics["precision_recall"] is not None
    assert stale_statistics["precision_recall"][-1] == (0.0, 1.0)
    assert stale_statistics["calibration"] == ((0.1, 0.0), (0.4, 1.0), (0.8, 1.0))
