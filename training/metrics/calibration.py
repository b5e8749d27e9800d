"""Calibration: from vertebra scores to fracture probabilities, fitted on the calibration patients.

A vertebra's probability is Platt's ``sigmoid(slope * score + offset)``. Slope and offset are a
shared pair plus a ridge-penalised deviation for each level, so few patients determine mostly the
shared pair and many patients give each level its own. The patient's probability is a Platt map of
the noisy-or of its vertebrae, ridge-penalised towards the noisy-or itself; the model's own patient
logit is added if there is one. All maps are fitted under the competition's weights, on known
labels.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from storage_schemas.targets import Targets
from training.metrics.competition import best_constants, exam_weights

Floats = NDArray[np.float64]

_PENALTY = 1.0
_PATIENT_SLOPE_PENALTY, _PATIENT_OFFSET_PENALTY = 30.0, 10.0
"""The patient target carries half of the loss and has one observation for each patient, so a slope
that overfits is costly; these penalties are measured in docs/benchmarks.md, "Rounds"."""
_EDGE = 1e-6


@dataclass(frozen=True)
class Calibration:
    """Fitted calibration maps.

    Parameters
    ----------
    centre, scale : float
        Standardisation of the scores: ``(score - centre) / scale``.
    slopes, offsets : tuple of float
        Slope and offset of the Platt map of each level.
    patient_slope, patient_offset : float
        Slope and offset of the Platt map of the noisy-or.
    priors : tuple of float
        Best constants of the training patients, one for each target; used for levels without a
        crop.
    head_slope, head_centre, head_scale : float
        Slope and standardisation of the model's patient logit, which is added to the patient's map;
        the slope is 0 without such a logit.
    """

    centre: float
    scale: float
    slopes: tuple[float, ...]
    offsets: tuple[float, ...]
    patient_slope: float
    patient_offset: float
    priors: tuple[float, ...]
    head_slope: float = 0.0
    head_centre: float = 0.0
    head_scale: float = 1.0

    def probabilities(self, scores: Floats, patient: Floats | None = None) -> Floats:
        """Compute the fracture probabilities of each study.

        Parameters
        ----------
        scores : ndarray, shape (studies, levels)
            Vertebra scores, NaN without a crop. A level without a crop gets its prior, and the
            patient of a study without any crop gets the patient's prior.
        patient : ndarray, shape (studies,), or None
            Patient logit of the model.

        Returns
        -------
        ndarray, shape (studies, targets)
            Probabilities in the order of `Targets.columns`.
        """
        levels = self._levels(scores)
        logit = self.patient_slope * _noisy_or(levels) + self.patient_offset
        if patient is not None:
            logit = logit + self.head_slope * self._head(patient)
        either = np.where(np.isnan(scores).all(axis=1), self.priors[0], _sigmoid(logit))
        return np.column_stack([either, levels])

    def _head(self, patient: Floats) -> Floats:
        return cast(Floats, np.nan_to_num((patient - self.head_centre) / self.head_scale))

    def _levels(self, scores: Floats) -> Floats:
        missing = np.isnan(scores)
        x = (np.where(missing, self.centre, scores) - self.centre) / self.scale
        found = _sigmoid(np.asarray(self.slopes) * x + np.asarray(self.offsets))
        return np.where(missing, np.asarray(self.priors[1:]), found)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values that `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Calibration":
        """Read the output of `to_json`; raises TypeError otherwise."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in document.items()
        }
        return cls(**values)


def fit_calibration(
    scores: Floats,
    labels: Floats,
    train_labels: Floats,
    targets: Targets,
    patient: Floats | None = None,
) -> Calibration:
    """Fit the calibration maps.

    Parameters
    ----------
    scores : ndarray, shape (studies, levels)
        Vertebra scores of the calibration patients, NaN without a crop.
    labels : ndarray, shape (studies, targets)
        Labels of the calibration patients: 0 or 1, NaN where unknown. The map of a level is fitted
        on the known labels of that level, the patient's map on the known labels of patients.
    train_labels : ndarray, shape (studies, targets)
        Labels of the training patients, NaN where unknown; their best constants are the priors.
    targets : Targets
        Names and weights of the columns of labels.
    patient : ndarray, shape (studies,), or None
        Patient logits of the calibration patients.
    """
    priors = best_constants(train_labels, targets)
    cropped = ~np.isnan(scores)
    known = cropped & ~np.isnan(labels[:, 1:])
    centre, scale = _centre_and_scale(scores)
    x = (np.where(known, scores, centre) - centre) / scale
    level = np.nonzero(known)[1]
    weights = exam_weights(labels, targets)
    one_level = np.eye(scores.shape[1])[level]
    levels = scores.shape[1]
    theta = _fit_logistic(
        np.column_stack([x[known], np.ones(len(level)), one_level * x[known][:, None], one_level]),
        labels[:, 1:][known],
        weights[:, 1:][known],
        start=_logit(priors[1:])[level],
        penalty=np.full(2 + 2 * levels, _PENALTY),
    )
    slope, offset, (slopes, offsets) = theta[0], theta[1], theta[2:].reshape(2, levels)
    head_centre, head_scale = _centre_and_scale(patient)
    levels_only = Calibration(
        centre=centre,
        scale=scale,
        slopes=tuple((slope + slopes).tolist()),
        offsets=tuple((offset + offsets + _logit(priors[1:])).tolist()),
        patient_slope=1.0,
        patient_offset=0.0,
        priors=tuple(priors.tolist()),
        head_centre=head_centre,
        head_scale=head_scale,
    )
    patients = cropped.any(axis=1) & ~np.isnan(labels[:, 0])
    either = _noisy_or(levels_only._levels(scores))[patients]
    head = np.zeros(len(scores)) if patient is None else levels_only._head(patient)
    columns = np.column_stack([either, np.ones(either.size), head[patients]])
    # Starts from the noisy-or: slope 1, offset 0, and no patient logit.
    start = either
    penalty = np.array([_PATIENT_SLOPE_PENALTY, _PATIENT_OFFSET_PENALTY, _PENALTY])
    found = _fit_logistic(
        columns, labels[patients, 0], weights[patients, 0], start=start, penalty=penalty
    )
    if found[2] < 0:
        # A patient logit with a negative slope is dropped, not inverted.
        columns[:, 2] = 0
        found = _fit_logistic(
            columns, labels[patients, 0], weights[patients, 0], start=start, penalty=penalty
        )
    slope, offset, head = found.tolist()
    return replace(levels_only, patient_slope=1 + slope, patient_offset=offset, head_slope=head)


def _centre_and_scale(logits: Floats | None) -> tuple[float, float]:
    known = np.empty(0) if logits is None else logits[~np.isnan(logits)]
    return (float(known.mean()), float(known.std()) or 1.0) if known.size else (0.0, 1.0)


def _fit_logistic(
    x: Floats, y: Floats, weights: Floats, *, start: Floats, penalty: Floats
) -> Floats:
    """Fit a ridge-penalised, weighted logistic regression with offset `start` by Newton's method.

    The weights are scaled to mean 1, so that a penalty of 1 corresponds to one observation.
    """
    theta = np.zeros(x.shape[1])
    if not y.size:
        return theta
    w = weights / weights.mean()

    def loss(candidate: Floats) -> float:
        z = start + x @ candidate
        return float((w * (np.logaddexp(0, z) - y * z)).sum() + (penalty * candidate**2).sum() / 2)

    for _ in range(100):
        p = _sigmoid(start + x @ theta)
        gradient = x.T @ (w * (p - y)) + penalty * theta
        curvature = (x * (w * p * (1 - p))[:, None]).T @ x + np.diag(penalty)
        step = np.linalg.solve(curvature, gradient)
        # The loss is convex, so step halving terminates.
        while loss(theta - step) > loss(theta) and np.abs(step).max() > _EDGE:
            step = step / 2
        theta = theta - step
        if np.abs(step).max() <= _EDGE:
            break
    return theta


def _noisy_or(levels: Floats) -> Floats:
    """Logit of the probability of at least one fracture, with independent levels."""
    return _logit(1 - np.prod(1 - levels, axis=1))


def _sigmoid(z: Floats) -> Floats:
    """Logistic function.

    `scipy.special.expit` differs in the last bit, which would change recorded losses.
    """
    return cast(Floats, np.exp(-np.logaddexp(0, -z)))


def _logit(p: Floats) -> Floats:
    """Logit, finite at 0 and 1; `scipy.special.logit` differs in the last bit, see `_sigmoid`."""
    kept = np.clip(p, _EDGE, 1 - _EDGE)
    return cast(Floats, np.log(kept / (1 - kept)))
