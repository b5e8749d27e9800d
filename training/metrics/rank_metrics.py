"""What a threshold would do: areas and sensitivity, of a sample and thousands of its resamples.

scikit-learn has the same figures for one sample, and the tests compare with it; here a resample is
a row of weights, and all of them are one cumulative sum.
"""

from typing import cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

SPECIFICITY = 0.95
"""At which the sensitivity is told; commercial systems and radiologists lie about there."""


def rank_figures(labels: ArrayLike, scores: ArrayLike, weights: Floats) -> dict[str, Floats]:
    """Figures that depend on the order of the scores alone.

    Parameters
    ----------
    labels : array_like, shape (exams,), 0 or 1
    scores : array_like, shape (exams,)
    weights : ndarray, shape (resamples, exams)
        How often each exam is in each resample.

    Returns
    -------
    dict of str to ndarray, shape (resamples,)
        ``auc``, the area under the ROC curve; ``average_precision``; ``sensitivity``, the largest
        one at a specificity of at least `SPECIFICITY`. NaN where a resample lacks either class.
    """
    truth, values = np.asarray(labels) == 1, np.asarray(scores, np.float64)
    order = np.argsort(-values, kind="stable")
    # Equal scores pass a threshold together.
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


def mean_figures(labels: ArrayLike, probabilities: ArrayLike, weights: Floats) -> dict[str, Floats]:
    """``brier``, the mean squared difference of probability and truth, of each resample."""
    truth, p = np.asarray(labels, np.float64), np.asarray(probabilities, np.float64)
    return {"brier": cast(Floats, weights @ (p - truth) ** 2 / weights.sum(axis=1))}


def _where(lacking: NDArray[np.bool_], values: Floats) -> Floats:
    return cast(Floats, np.where(lacking, np.nan, values))
