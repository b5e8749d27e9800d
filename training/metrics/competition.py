"""The competition's weighted log loss, and the constants that any model has to beat.

A target's weight is 1 for a vertebra that is whole and 2 for one that is broken; for the patient,
7 and 14. An exam's loss is ``sum(weight * loss) / sum(weight)`` over its eight targets, the score
the mean over exams. Source: the evaluation page of RSNA 2022 Cervical Spine Fracture Detection.

Arrays have shape (exams, 8), their columns in the order of `LABEL_COLUMNS`.
"""

from typing import cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from storage_schemas.vertebrae import LABEL_COLUMNS

Floats = NDArray[np.float64]

CLIP = 1e-15
"""Probabilities are kept this far from 0 and 1."""

_NEGATIVE = np.array([7.0] + [1.0] * 7)
_POSITIVE = 2 * _NEGATIVE


def exam_weights(labels: ArrayLike) -> Floats:
    """The weight of each target in its exam.

    Parameters
    ----------
    labels : array_like, shape (exams, 8), 0 or 1

    Returns
    -------
    ndarray, shape (exams, 8)
        Each row sums to 1.
    """
    weights = np.where(_table(labels) == 1, _POSITIVE, _NEGATIVE)
    return cast(Floats, weights / weights.sum(axis=1, keepdims=True))


def cross_entropy(labels: ArrayLike, probabilities: ArrayLike) -> Floats:
    """The log loss of each target, unweighted; probabilities may be one row for all exams."""
    truth = _table(labels)
    p = np.broadcast_to(np.asarray(probabilities, np.float64), truth.shape)
    p = np.clip(p, CLIP, 1 - CLIP)
    return cast(Floats, -np.where(truth == 1, np.log(p), np.log1p(-p)))


def exam_losses(labels: ArrayLike, probabilities: ArrayLike) -> Floats:
    """The competition's loss of each exam, shape (exams,)."""
    losses = exam_weights(labels) * cross_entropy(labels, probabilities)
    return cast(Floats, losses.sum(axis=1))


def competition_loss(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """The competition's score: the mean of `exam_losses`."""
    return float(exam_losses(labels, probabilities).mean())


def target_losses(labels: ArrayLike, probabilities: ArrayLike) -> dict[str, float]:
    """The loss of each target alone: the mean over exams under the weights of that column."""
    weights = exam_weights(labels)
    losses = (weights * cross_entropy(labels, probabilities)).sum(axis=0) / weights.sum(axis=0)
    return dict(zip(LABEL_COLUMNS, losses.tolist(), strict=True))


def class_prior(labels: ArrayLike) -> Floats:
    """The share of exams in which each target is broken, shape (8,)."""
    return cast(Floats, _table(labels).mean(axis=0))


def best_constants(labels: ArrayLike) -> Floats:
    """The constants, one a target, of least loss on these labels, shape (8,).

    The loss of a column is a weighted cross-entropy, which the weighted share of broken ones
    minimises. The weights favour broken exams, so these lie above `class_prior` or, for the
    patient, where broken exams also weigh more in sum, close to it.
    """
    weights = exam_weights(labels)
    return cast(Floats, (weights * _table(labels)).sum(axis=0) / weights.sum(axis=0))


def bootstrap_difference(
    losses: ArrayLike, others: ArrayLike, *, seed: int, resamples: int = 10_000
) -> tuple[float, float]:
    """The 95 % interval of the mean of ``losses - others``, both of the same patients.

    Parameters
    ----------
    losses, others : array_like, shape (patients,)
    seed : int
    resamples : int
        Resamples of the patients (percentile bootstrap; Efron and Tibshirani, 1993).
    """
    gains = np.asarray(losses, np.float64) - np.asarray(others, np.float64)
    picks = np.random.default_rng(seed).integers(0, gains.size, (resamples, gains.size))
    low, high = np.quantile(gains[picks].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def _table(labels: ArrayLike) -> NDArray[np.int64]:
    table = np.asarray(labels, np.int64)
    if table.ndim != 2 or table.shape[1] != len(LABEL_COLUMNS) or not table.shape[0]:
        raise ValueError(f"labels have the shape (exams, {len(LABEL_COLUMNS)}), not {table.shape}")
    return table
