"""A mixture of rounds: one convex weight a round, beside the single model that a run offers.

The weights minimise the competition's loss of the mixed probabilities on the calibration patients.
That loss is the negative log-likelihood of a mixture, so expectation and maximisation in turn find
its one minimum on the simplex (Dempster, Laird and Rubin, 1977), with no step length to choose.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from training.metrics.competition import CLIP, exam_weights

Floats = NDArray[np.float64]

_ENOUGH = 0.02
"""Rounds of a smaller weight are left out: each costs a whole prediction."""


@dataclass(frozen=True)
class RoundEnsemble:
    """The mixture.

    Parameters
    ----------
    rounds : tuple of int
    weights : tuple of float
        Of those rounds; at least 0, together 1.
    guard_loss : float
        Of the mixture, on the guard patients.
    """

    rounds: tuple[int, ...]
    weights: tuple[float, ...]
    guard_loss: float

    def average_predictions(self, probabilities: Mapping[int, Floats]) -> Floats:
        """The mixed probabilities, shape (studies, 8), from those of each round."""
        return average_predictions(self.weights, [probabilities[number] for number in self.rounds])

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` reads them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "RoundEnsemble":
        """Read what `to_json` wrote; raises KeyError or TypeError on anything else."""
        return cls(
            tuple(document["rounds"]), tuple(document["weights"]), float(document["guard_loss"])
        )


def average_predictions(weights: Sequence[float], probabilities: Sequence[Floats]) -> Floats:
    """The weighted mean of some tables."""
    return cast(Floats, np.tensordot(weights, np.stack(probabilities), 1))


def fit_weights(labels: NDArray[np.int64], probabilities: Sequence[Floats]) -> Floats:
    """Weights of least loss.

    Parameters
    ----------
    labels : ndarray, shape (studies, 8)
        Of the calibration patients.
    probabilities : sequence of ndarray, shape (studies, 8)
        Of each round.

    Returns
    -------
    ndarray, shape (rounds,)
        On the simplex; small ones are 0.
    """
    table = np.clip(np.stack(probabilities), CLIP, 1 - CLIP)
    given = np.where(labels == 1, table, 1 - table).reshape(len(table), -1)
    exams = exam_weights(labels).reshape(-1) / len(labels)
    weights = _maximise(given, exams)
    kept = weights >= min(_ENOUGH, weights.max())
    weights = np.zeros(len(table))
    weights[kept] = _maximise(given[kept], exams)
    return weights


def _maximise(given: Floats, exams: Floats) -> Floats:
    weights = np.full(len(given), 1 / len(given))
    for _ in range(2000):
        shares = weights[:, None] * given
        moved = (shares / shares.sum(axis=0)) @ exams
        if np.abs(moved - weights).max() < 1e-9:
            break
        weights = moved
    return cast(Floats, weights)
