"""The competition's weighted log loss, and constant baselines.

The weight of a target depends on its label, see `Targets.weights`; in the competition it is 1
(negative) or 2 (positive) for a vertebra, and 7 or 14 for the patient. The loss of an exam is
``sum(weight * loss) / sum(weight)`` over its targets, and the score is the mean over exams. Source:
the evaluation page of RSNA 2022 Cervical Spine Fracture Detection.

Arrays have shape (exams, targets), with columns in the order of `Targets.columns`.
"""

from typing import cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from storage_schemas.targets import Targets

Floats = NDArray[np.float64]

CLIP = 1e-15
"""Distance that probabilities keep from 0 and 1."""


def exam_weights(labels: ArrayLike, targets: Targets) -> Floats:
    """Compute the weight of each target in its exam.

    Parameters
    ----------
    labels : array_like, shape (exams, targets), 0 or 1
        Labels of the exams.
    targets : Targets
        Names and weights of the columns.

    Returns
    -------
    ndarray, shape (exams, targets)
        Weights; each row sums to 1.
    """
    table = _table(labels)
    if table.shape[1] != len(targets):
        raise ValueError(f"labels have the shape (exams, {len(targets)}), not {table.shape}")
    weights = np.where(table == 1, targets.positive_weights, targets.negative_weights)
    return cast(Floats, weights / weights.sum(axis=1, keepdims=True))


def cross_entropy(labels: ArrayLike, probabilities: ArrayLike) -> Floats:
    """Compute the unweighted log loss of each target; one row of probabilities is broadcast."""
    truth = _table(labels)
    p = np.broadcast_to(np.asarray(probabilities, np.float64), truth.shape)
    p = np.clip(p, CLIP, 1 - CLIP)
    return cast(Floats, -np.where(truth == 1, np.log(p), np.log1p(-p)))


def exam_losses(labels: ArrayLike, probabilities: ArrayLike, targets: Targets) -> Floats:
    """Compute the competition's loss of each exam, shape (exams,)."""
    losses = exam_weights(labels, targets) * cross_entropy(labels, probabilities)
    return cast(Floats, losses.sum(axis=1))


def competition_loss(labels: ArrayLike, probabilities: ArrayLike, targets: Targets) -> float:
    """Compute the competition's score, the mean of `exam_losses`."""
    return float(exam_losses(labels, probabilities, targets).mean())


def target_losses(
    labels: ArrayLike, probabilities: ArrayLike, targets: Targets
) -> dict[str, float]:
    """Compute the loss of each target, the weighted mean over its column."""
    weights = exam_weights(labels, targets)
    losses = (weights * cross_entropy(labels, probabilities)).sum(axis=0) / weights.sum(axis=0)
    return dict(zip(targets.columns, losses.tolist(), strict=True))


def class_prior(labels: ArrayLike) -> Floats:
    """Compute the fracture rate of each target, shape (targets,)."""
    return cast(Floats, _table(labels).mean(axis=0))


def best_constants(labels: ArrayLike, targets: Targets) -> Floats:
    """Compute the constant prediction of each target with the least loss, shape (targets,).

    The optimum of a weighted cross-entropy is the weighted fracture rate. Fractured targets have
    larger weights, so it lies above `class_prior`; least so for the patient target, because weights
    are normalised within each exam.
    """
    weights = exam_weights(labels, targets)
    return cast(Floats, (weights * _table(labels)).sum(axis=0) / weights.sum(axis=0))


def bootstrap_difference(
    losses: ArrayLike, others: ArrayLike, *, seed: int, resamples: int = 10_000
) -> tuple[float, float]:
    """Compute the 95 % interval of the mean of ``losses - others``, by bootstrap over patients.

    Parameters
    ----------
    losses, others : array_like, shape (patients,)
        Losses of two models on the same patients.
    seed : int
        Random seed of the resamples.
    resamples : int
        Number of resamples (percentile bootstrap; Efron and Tibshirani, 1993).
    """
    gains = np.asarray(losses, np.float64) - np.asarray(others, np.float64)
    picks = np.random.default_rng(seed).integers(0, gains.size, (resamples, gains.size))
    low, high = np.quantile(gains[picks].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def _table(labels: ArrayLike) -> NDArray[np.int64]:
    table = np.asarray(labels, np.int64)
    if table.ndim != 2 or not table.shape[0]:
        raise ValueError(f"labels have the shape (exams, targets), not {table.shape}")
    return table
