"""From vertebra scores to the eight probabilities of a study, fitted on the calibration patients.

A vertebra's probability is Platt's ``sigmoid(slope * score + offset)``. Slope and offset are one
pair for all levels plus a deviation for each level, held down by a ridge penalty: a split of a
dozen patients moves mostly the shared pair, one of hundreds gives each level its own. The patient's
probability is a Platt map of the noisy-or of its vertebrae, held near the noisy-or itself until
there are many patients, and blended with what the model says of the whole patient where it says so.
All are fitted under the competition's weights, since that is the loss that they should make small.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from training.metrics.competition import best_constants, exam_weights

Floats = NDArray[np.float64]

_PENALTY = 1.0
_PATIENT_SLOPE_PENALTY, _PATIENT_OFFSET_PENALTY = 30.0, 10.0
"""Half of the loss is this one label's, and one patient is one observation of it: a slope that is
too steep by chance costs more than all else here. Measured in docs/benchmarks.md, "Rounds"."""
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
    head_slope, head_centre, head_scale : float
        Of the model's own logit of the patient, taken as ``(logit - centre) / scale`` and added to
        the patient's map; a slope of 0 where there is none.
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
        """The eight probabilities of each study.

        Parameters
        ----------
        scores : ndarray, shape (studies, 7)
            NaN where there is no crop: that level gets its prior, and a study without any crop the
            patient's prior too.
        patient : ndarray, shape (studies,), or None
            The model's own logit of the patient.

        Returns
        -------
        ndarray, shape (studies, 8)
            In the order of `LABEL_COLUMNS`.
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
    scores: Floats,
    labels: NDArray[np.int64],
    train_labels: NDArray[np.int64],
    patient: Floats | None = None,
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
    patient : ndarray, shape (studies,), or None
        The model's own logits of the calibration patients.
    """
    priors = best_constants(train_labels)
    known = ~np.isnan(scores)
    centre, scale = _centre_and_scale(scores)
    x = (np.where(known, scores, centre) - centre) / scale
    level = np.nonzero(known)[1]
    weights = exam_weights(labels)
    one_level = np.eye(scores.shape[1])[level]
    theta = _fit_logistic(
        np.column_stack([x[known], np.ones(len(level)), one_level * x[known][:, None], one_level]),
        labels[:, 1:][known],
        weights[:, 1:][known],
        start=_logit(priors[1:])[level],
        penalty=np.full(2 + 2 * scores.shape[1], _PENALTY),
    )
    slope, offset, slopes, offsets = theta[0], theta[1], theta[2:9], theta[9:]
    head_centre, head_scale = _centre_and_scale(patient)
    half = Calibration(
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
    seen = known.any(axis=1)
    either = _noisy_or(half._levels(scores))[seen]
    opinion = np.zeros(len(scores)) if patient is None else half._head(patient)
    columns = np.column_stack([either, np.ones(either.size), opinion[seen]])
    # Starts from the noisy-or itself: slope 1, offset 0, and nothing of the model's own.
    start = either
    penalty = np.array([_PATIENT_SLOPE_PENALTY, _PATIENT_OFFSET_PENALTY, _PENALTY])
    found = _fit_logistic(columns, labels[seen, 0], weights[seen, 0], start=start, penalty=penalty)
    if found[2] < 0:
        # An opinion that is worse than none is left out, never believed in reverse.
        columns[:, 2] = 0
        found = _fit_logistic(
            columns, labels[seen, 0], weights[seen, 0], start=start, penalty=penalty
        )
    slope, offset, head = found.tolist()
    return replace(half, patient_slope=1 + slope, patient_offset=offset, head_slope=head)


def _centre_and_scale(logits: Floats | None) -> tuple[float, float]:
    known = np.empty(0) if logits is None else logits[~np.isnan(logits)]
    return (float(known.mean()), float(known.std()) or 1.0) if known.size else (0.0, 1.0)


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
    """`scipy.special.expit` differs in the last bit, and then recorded losses do."""
    return cast(Floats, np.exp(-np.logaddexp(0, -z)))


def _logit(p: Floats) -> Floats:
    """Finite at 0 and 1 too; `scipy.special.logit` differs in the last bit, see `_sigmoid`."""
    kept = np.clip(p, _EDGE, 1 - _EDGE)
    return cast(Floats, np.log(kept / (1 - kept)))
