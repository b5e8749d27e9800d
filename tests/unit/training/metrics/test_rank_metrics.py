import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    roc_auc_score,
    roc_curve,
)

from training.metrics.rank_metrics import brier_score, rank_metrics

Exams = tuple[NDArray[np.int64], NDArray[np.float64]]


def make_exams(count: int = 60, seed: int = 0, *, ties: bool = True) -> Exams:
    random = np.random.default_rng(seed)
    labels = (random.random(count) < 0.3).astype(np.int64)
    scores = np.clip(random.normal(0.4 + 0.2 * labels, 0.2), 0, 1)
    return labels, np.round(scores, 1) if ties else scores


@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_metrics_equal_those_of_scikit_learn(seed: int, ties: bool) -> None:
    labels, scores = make_exams(seed=seed, ties=ties)
    found = rank_metrics(labels, scores, np.ones((1, len(labels))))
    assert found["auc"][0] == pytest.approx(roc_auc_score(labels, scores))
    assert found["average_precision"][0] == pytest.approx(average_precision_score(labels, scores))
    false_alarms, sensitivity, _ = roc_curve(labels, scores, drop_intermediate=False)
    expected = sensitivity[false_alarms <= 0.05].max()
    assert found["sensitivity"][0] == pytest.approx(expected)
    brier = brier_score(labels, scores, np.ones((1, len(labels))))["brier"][0]
    assert brier == pytest.approx(brier_score_loss(labels, scores))


def test_a_resample_is_the_sample_with_exams_repeated_or_left_out() -> None:
    labels, scores = make_exams()
    weights = np.random.default_rng(1).integers(0, 3, (5, len(labels))).astype(np.float64)
    found = rank_metrics(labels, scores, weights) | brier_score(labels, scores, weights)
    for row, counts in enumerate(weights.astype(int)):
        many_labels, many_scores = np.repeat(labels, counts), np.repeat(scores, counts)
        alone = np.ones((1, len(many_labels)))
        expected = rank_metrics(many_labels, many_scores, alone)
        expected |= brier_score(many_labels, many_scores, alone)
        for name, values in found.items():
            assert values[row] == pytest.approx(expected[name][0]), name


def test_a_resample_of_one_class_has_no_figures() -> None:
    labels, scores = make_exams()
    weights = np.stack([labels, 1 - labels, np.ones_like(labels)]).astype(np.float64)
    for values in rank_metrics(labels, scores, weights).values():
        assert np.isnan(values).tolist() == [True, True, False]


def test_ninety_five_percent_specificity_may_be_met_exactly() -> None:
    labels = np.array([1, 1] + [0] * 20)
    scores = np.array([0.9, 0.5, 0.6] + [0.1] * 19)
    found = rank_metrics(labels, scores, np.ones((1, 22)))
    assert found["sensitivity"][0] == 1.0
