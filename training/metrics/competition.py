"""The competition's weighted log loss, and constant baselines.

The weight of a target depends on its label, see `Targets.weights`; in the competition it is 1
(negative) or 2 (positive) for a vertebra, and 7 or 14 for the patient. The loss of an exam is
``sum(weight * loss) / sum(weight)`` over its targets, and the score is the mean over exams. Source:
the evaluation page of RSNA 2022 Cervical Spine Fracture Detection.

Arrays have shape (exams, targets), with columns in the order of `Targets.columns`. A label is 0, 1
or, where it is unknown, NaN. Unknown labels have no weight: both sums of an exam are over its known
targets, and the mean is over the exams with at least one known target. If all labels are known,
this is the competition's metric.
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
    labels : array_like, shape (exams, targets)
        Labels of the exams: 0 or 1, NaN where unknown.
    targets : Targets
        Names and weights of the columns.

    Returns
    -------
    ndarray, shape (exams, targets)
        Weights, 0 where the label is unknown; the row of an exam with a known label sums to 1.
    """
    table = _table(labels)
    if table.shape[1] != len(targets):
        raise ValueError(f"labels have the shape (exams, {len(targets)}), not {table.shape}")
    weights = np.where(table == 1, targets.positive_weights, targets.negative_weights)
    weights[np.isnan(table)] = 0
    total = weights.sum(axis=1, keepdims=True)
    return weights / np.where(total == 0, 1, total)


def cross_entropy(labels: ArrayLike, probabilities: ArrayLike) -> Floats:
    """Compute the unweighted log loss of each target, NaN where its label is unknown.

    One row of probabilities is broadcast.
    """
    truth = _table(labels)
    p = np.broadcast_to(np.asarray(probabilities, np.float64), truth.shape)
    p = np.clip(p, CLIP, 1 - CLIP)
    losses = -np.where(truth == 1, np.log(p), np.log1p(-p))
    losses[np.isnan(truth)] = np.nan
    return cast(Floats, losses)


def weighted_losses(labels: ArrayLike, probabilities: ArrayLike, targets: Targets) -> Floats:
    """Compute the share of each target in its exam's loss, 0 where its label is unknown."""
    losses = exam_weights(labels, targets) * cross_entropy(labels, probabilities)
    losses[np.isnan(_table(labels))] = 0
    return losses


def exam_losses(labels: ArrayLike, probabilities: ArrayLike, targets: Targets) -> Floats:
    """Compute the loss of each exam, shape (exams,); NaN for exams without a known label."""
    losses = weighted_losses(labels, probabilities, targets).sum(axis=1)
    losses[np.isnan(_table(labels)).all(axis=1)] = np.nan
    return cast(Floats, losses)


def competition_loss(labels: ArrayLike, probabilities: ArrayLike, targets: Targets) -> float:
    """Compute the score: the mean of `exam_losses` over the exams with a known label."""
    known = ~np.isnan(_table(labels)).all(axis=1)
    return float(exam_losses(labels, probabilities, targets)[known].mean())


def target_losses(
    labels: ArrayLike, probabilities: ArrayLike, targets: Targets
) -> dict[str, float]:
    """Compute the loss of each target, the weighted mean over its known labels; NaN without any."""
    weights = exam_weights(labels, targets).sum(axis=0)
    losses = weighted_losses(labels, probabilities, targets).sum(axis=0)
    found = np.where(weights == 0, np.nan, losses / np.where(weights == 0, 1, weights))
    return dict(zip(targets.columns, found.tolist(), strict=True))


def class_prior(labels: ArrayLike) -> Floats:
    """Compute the fracture rate of each target over its known labels, shape (targets,).

    A target without known labels has the rate of `best_constants`, with equal weights.
    """
    table = _table(labels)
    return _rates(table, (~np.isnan(table)).astype(np.float64))


def best_constants(labels: ArrayLike, targets: Targets) -> Floats:
    """Compute the constant prediction of each target with the least loss, shape (targets,).

    The optimum of a weighted cross-entropy is the weighted fracture rate. Fractured targets have
    larger weights, so it lies above `class_prior`; least so for the patient target, because weights
    are normalised within each exam.

    Unknown labels do not count. A level without any known label gets the rate of all known labels
    of levels, and is 0.5 if there are none; so is a patient target without any.
    """
    return _rates(_table(labels), exam_weights(labels, targets))


def _rates(table: Floats, weights: Floats) -> Floats:
    """Weighted fracture rate of each target; `weights` are 0 where the label is unknown."""
    fractured = np.where(weights == 0, 0, weights * table).sum(axis=0)
    total = weights.sum(axis=0)
    pooled = fractured[1:].sum() / total[1:].sum() if total[1:].any() else 0.5
    rest = np.full(len(total), pooled)
    rest[0] = 0.5
    return np.where(total == 0, rest, fractured / np.where(total == 0, 1, total))


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


def _table(labels: ArrayLike) -> Floats:
    table = np.asarray(labels, np.float64)
    if table.ndim != 2 or not table.shape[0]:
        raise ValueError(f"labels have the shape (exams, targets), not {table.shape}")
    return table
