"""From vertebra scores to the eight probabilities of a study, fitted on the calibration patients.

A vertebra's probability is Platt's ``sigmoid(slope * score + offset)``. Slope and offset are one
pair for all levels plus a deviation for each level, held down by a ridge penalty: a split of a
dozen patients moves the shared pair only, one of hundreds gives each level its own. The patient's
probability is a Platt map of the noisy-or of its vertebrae. Both are fitted under the competition's
weights, since that is the loss that they should make small.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from training.metric import best_constants, exam_weights

Floats = NDArray[np.float64]

_SHARED_PENALTY = 0.1
_LEVEL_PENALTY = 3.0
_EDGE = 1e-6


@dataclass(frozen=True)
class Calibration:
    """The fitted maps.

    Parameters
    ----------
    centre, scale : float
        Scores are taken as ``(score - centre) / scale``.
    slopes, offsets : tuple of 7 floats
        Of C1 to C7.
    patient_slope, patient_offset : float
        Of the logit of the noisy-or.
    priors : tuple of 8 floats
        The best constants of the training patients: what a target without a crop gets.
    """

    centre: float
    scale: float
    slopes: tuple[float, ...]
    offsets: tuple[float, ...]
    patient_slope: float
    patient_offset: float
    priors: tuple[float, ...]

    def probabilities(self, scores: Floats) -> Floats:
        """The eight probabilities of each study.

        Parameters
        ----------
        scores : ndarray, shape (studies, 7)
            NaN where there is no crop: that level gets its prior, and a study without any crop the
            patient's prior too.

        Returns
        -------
        ndarray, shape (studies, 8)
            In the order of `LABEL_COLUMNS`.
        """
        levels = self._levels(scores)
        patient = _sigmoid(self.patient_slope * _noisy_or(levels) + self.patient_offset)
        patient = np.where(np.isnan(scores).all(axis=1), self.priors[0], patient)
        return np.column_stack([patient, levels])

    def _levels(self, scores: Floats) -> Floats:
        missing = np.isnan(scores)
        x = (np.where(missing, self.centre, scores) - self.centre) / self.scale
        found = _sigmoid(np.asarray(self.slopes) * x + np.asarray(self.offsets))
        return np.where(missing, np.asarray(self.priors[1:]), found)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` reads them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Calibration":
        """Read what `to_json` wrote; raises TypeError on anything else."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in document.items()
        }
        return cls(**values)


def fit_calibration(
    scores: Floats, labels: NDArray[np.int64], train_labels: NDArray[np.int64]
) -> Calibration:
    """Fit the maps.

    Parameters
    ----------
    scores : ndarray, shape (studies, 7)
        Of the calibration patients; NaN where there is no crop.
    labels : ndarray, shape (studies, 8)
        Theirs.
    train_labels : ndarray, shape (studies, 8)
        Of the training patients: where the maps start from.
    """
    priors = best_constants(train_labels)
    known = ~np.isnan(scores)
    centre = float(scores[known].mean()) if known.any() else 0.0
    scale = float(scores[known].std()) or 1.0 if known.any() else 1.0
    x = (np.where(known, scores, centre) - centre) / scale
    level = np.nonzero(known)[1]
    weights = exam_weights(labels)
    one_level = np.eye(scores.shape[1])[level]
    theta = _fit_logistic(
        np.column_stack([x[known], np.ones(len(level)), one_level * x[known][:, None], one_level]),
        labels[:, 1:][known],
        weights[:, 1:][known],
        start=_logit(priors[1:])[level],
        penalty=np.array([_SHARED_PENALTY] * 2 + [_LEVEL_PENALTY] * 2 * scores.shape[1]),
    )
    slope, offset, slopes, offsets = theta[0], theta[1], theta[2:9], theta[9:]
    half = Calibration(
        centre=centre,
        scale=scale,
        slopes=tuple((slope + slopes).tolist()),
        offsets=tuple((offset + offsets + _logit(priors[1:])).tolist()),
        patient_slope=1.0,
        patient_offset=0.0,
        priors=tuple(priors.tolist()),
    )
    seen = known.any(axis=1)
    either = _noisy_or(half._levels(scores))[seen]
    # Starts from the noisy-or itself: slope 1 and offset 0.
    slope, offset = _fit_logistic(
        np.column_stack([either, np.ones(either.size)]),
        labels[seen, 0],
        weights[seen, 0],
        start=either,
        penalty=np.array([1.0, _SHARED_PENALTY]),
    )
    return Calibration(
        **(half.to_json() | {"patient_slope": float(1 + slope), "patient_offset": float(offset)})
    )


def _fit_logistic(
    x: Floats, y: NDArray[np.int64], weights: Floats, *, start: Floats, penalty: Floats
) -> Floats:
    """Weighted logistic regression beside a fixed logit `start`, ridge-penalised, by Newton.

    The weights are scaled to a mean of 1, so that a penalty of 1 counts as much as one observation.
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
        # The loss is convex: halving a step that is too long always ends.
        while loss(theta - step) > loss(theta) and np.abs(step).max() > _EDGE:
            step = step / 2
        theta = theta - step
        if np.abs(step).max() <= _EDGE:
            break
    return theta


def _noisy_or(levels: Floats) -> Floats:
    """The logit of "at least one is broken", as if levels broke independently."""
    return _logit(1 - np.prod(1 - levels, axis=1))


def _sigmoid(z: Floats) -> Floats:
    return cast(Floats, np.exp(-np.logaddexp(0, -z)))


def _logit(p: Floats) -> Floats:
    kept = np.clip(p, _EDGE, 1 - _EDGE)
    return cast(Floats, np.log(kept / (1 - kept)))
