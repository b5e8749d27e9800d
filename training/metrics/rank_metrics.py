"""Threshold metrics of a sample and of all its bootstrap resamples at once.

scikit-learn computes the same metrics for one sample, and the tests compare with it. Here each
resample is a row of weights, and one cumulative sum serves all of them.
"""

from typing import cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

SPECIFICITY = 0.95
"""Specificity of the reported sensitivity, near that of radiologists and commercial systems."""


def rank_metrics(labels: ArrayLike, scores: ArrayLike, weights: Floats) -> dict[str, Floats]:
    """Compute metrics that depend on the order of the scores alone.

    Parameters
    ----------
    labels : array_like, shape (exams,)
        Labels of the exams: 0 or 1, NaN where unknown. Exams with an unknown label do not count.
    scores : array_like, shape (exams,)
        Scores of the exams.
    weights : ndarray, shape (resamples, exams)
        Number of times that each exam occurs in each resample.

    Returns
    -------
    dict of str to ndarray, shape (resamples,)
        ``auc``, the area under the ROC curve; ``average_precision``; ``sensitivity``, the largest
        sensitivity at a specificity of at least `SPECIFICITY`. NaN for resamples that lack one
        class.
    """
    known, values, weights = _known_exams(labels, scores, weights)
    if not known.size:
        return {
            name: np.full(len(weights), np.nan)
            for name in ("auc", "average_precision", "sensitivity")
        }
    truth = known == 1
    order = np.argsort(-values, kind="stable")
    # Tied scores share a threshold.
    last = np.flatnonzero(np.append(np.diff(values[order]) != 0, True))
    sampled = weights[:, order]
    found = np.cumsum(sampled * truth[order], axis=1)[:, last]
    alarms = np.cumsum(sampled * ~truth[order], axis=1)[:, last]
    none = np.zeros((len(weights), 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        sensitivity = np.hstack([none, found / found[:, -1:]])
        false_alarms = np.hstack([none, alarms / alarms[:, -1:]])
        precision = np.nan_to_num(found / (found + alarms))
    area = np.trapezoid(sensitivity, false_alarms, axis=1)
    allowed = false_alarms <= 1 - SPECIFICITY + 1e-12
    lacking = np.isnan(area)
    return {
        "auc": area,
        "average_precision": _where(
            lacking, (np.diff(sensitivity, axis=1) * precision).sum(axis=1)
        ),
        "sensitivity": _where(lacking, np.where(allowed, sensitivity, 0).max(axis=1)),
    }


def brier_score(labels: ArrayLike, probabilities: ArrayLike, weights: Floats) -> dict[str, Floats]:
    """Compute ``brier``, the mean squared error of the probabilities, for each resample.

    Exams with an unknown label (NaN) do not count; NaN for resamples without a known label.
    """
    truth, p, weights = _known_exams(labels, probabilities, weights)
    with np.errstate(invalid="ignore"):
        return {"brier": cast(Floats, weights @ (p - truth) ** 2 / weights.sum(axis=1))}


def _known_exams(
    labels: ArrayLike, scores: ArrayLike, weights: Floats
) -> tuple[Floats, Floats, Floats]:
    """Return the labels, scores and weights of the exams whose label is known."""
    truth = np.asarray(labels, np.float64)
    known = ~np.isnan(truth)
    return truth[known], np.asarray(scores, np.float64)[known], weights.compress(known, axis=1)


def _where(lacking: NDArray[np.bool_], values: Floats) -> Floats:
    return cast(Floats, np.where(lacking, np.nan, values))
