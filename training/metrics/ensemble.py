"""Ensemble of rounds: one non-negative weight for each round, with sum 1.

The weights minimise the competition's loss of the averaged probabilities on the calibration
patients. This loss is the negative log-likelihood of a mixture distribution, so
expectation-maximisation converges to its unique minimum on the simplex (Dempster, Laird and Rubin,
1977).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from storage_schemas.targets import Targets
from training.metrics.competition import CLIP, exam_weights

Floats = NDArray[np.float64]

_ENOUGH = 0.02
"""Smallest weight of a round; rounds below it are dropped, to save their predictions."""


@dataclass(frozen=True)
class RoundEnsemble:
    """Weights of an ensemble of rounds.

    Parameters
    ----------
    rounds : tuple of int
        Numbers of the rounds.
    weights : tuple of float
        Weight of each round; non-negative, with sum 1.
    guard_loss : float
        Loss of the ensemble on the guard patients.
    """

    rounds: tuple[int, ...]
    weights: tuple[float, ...]
    guard_loss: float

    def average_predictions(self, probabilities: Mapping[int, Floats]) -> Floats:
        """Average the probabilities of the rounds, shape (studies, targets)."""
        return average_predictions(self.weights, [probabilities[number] for number in self.rounds])

    def to_json(self) -> dict[str, Any]:
        """Return JSON values that `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "RoundEnsemble":
        """Read the output of `to_json`; raises KeyError or TypeError otherwise."""
        return cls(
            tuple(document["rounds"]), tuple(document["weights"]), float(document["guard_loss"])
        )


def average_predictions(weights: Sequence[float], probabilities: Sequence[Floats]) -> Floats:
    """Compute the weighted mean of tables of probabilities."""
    return cast(Floats, np.tensordot(weights, np.stack(probabilities), 1))


def fit_weights(labels: Floats, probabilities: Sequence[Floats], targets: Targets) -> Floats:
    """Fit the ensemble weights with the least loss.

    Parameters
    ----------
    labels : ndarray, shape (studies, targets)
        Labels of the calibration patients: 0 or 1, NaN where unknown. Unknown labels do not count.
    probabilities : sequence of ndarray, shape (studies, targets)
        Probabilities of each round.
    targets : Targets
        Names and weights of the columns.

    Returns
    -------
    ndarray, shape (rounds,)
        Weights on the simplex; small ones are set to 0.
    """
    table = np.clip(np.stack(probabilities), CLIP, 1 - CLIP)
    given = np.where(labels == 1, table, 1 - table).reshape(len(table), -1)
    known = int((~np.isnan(labels)).any(axis=1).sum())
    exams = exam_weights(labels, targets).reshape(-1) / known
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
