"""Patient-level train, guard, calibration and test splits, made once for each run.

Multi-label stratification assigns the patients of the rarest label first, each to the split that
lacks that label most (Sechidis, Tsoumakas and Vlahavas, On the Stratification of Multi-label Data,
ECML PKDD 2011). The labels are the targets, whether each of them is unknown, and the number of
fractured levels.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage_schemas.errors import UsageError
from training.config import SplitConfig
from training.data.cohort import Study, label_table

SIDES = ("train", "guard", "calibration", "test")


@dataclass(frozen=True)
class Splits:
    """The sorted patient keys of each split.

    Parameters
    ----------
    train : tuple of str
        Patients that rounds train on.
    guard : tuple of str
        Validation patients whose loss decides whether a round is accepted.
    calibration : tuple of str
        Patients that the probability calibration is fitted on.
    test : tuple of str
        Locked test patients, used by `evaluate` alone.
    """

    train: tuple[str, ...]
    guard: tuple[str, ...]
    calibration: tuple[str, ...]
    test: tuple[str, ...]

    def __post_init__(self) -> None:
        everyone = [patient for side in SIDES for patient in getattr(self, side)]
        if len(everyone) != len(set(everyone)):
            raise ValueError("a patient is in two splits")

    def choose(self, studies: Iterable[Study], side: str) -> tuple[Study, ...]:
        """Return the studies of one split's patients."""
        patients = set(getattr(self, side))
        return tuple(study for study in studies if study.patient in patients)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values that `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Splits":
        """Read the output of `to_json`; raises KeyError, TypeError or ValueError otherwise."""
        return cls(**{side: tuple(document[side]) for side in SIDES})


def split_patients(studies: Iterable[Study], config: SplitConfig, seed: int) -> Splits:
    """Split the patients of labelled studies.

    A patient's target is fractured if it is fractured in any study, intact if it is known in some
    study and fractured in none, and else unknown.

    Parameters
    ----------
    studies : iterable of Study
        Studies with at least one known label each, in any order.
    config : SplitConfig
        Size of each split, or the cross-validation fold.
    seed : int
        Random seed; the same studies and seed give the same splits.

    Raises
    ------
    UsageError
        ``cohort-too-small`` if a split lacks patients that are known to be fractured or intact.
    """
    by_patient: dict[str, list[Study]] = {}
    for study in studies:
        by_patient.setdefault(study.patient, []).append(study)
    patients = np.array(sorted(by_patient))
    # fmax ignores unknown labels (NaN) unless all are unknown.
    labels = np.stack([np.fmax.reduce(label_table(by_patient[patient])) for patient in patients])
    fractured = labels == 1
    levels = fractured[:, 1:].sum(axis=1)
    strata = np.column_stack(
        [fractured, np.isnan(labels), levels >= 2, levels >= 3, np.ones_like(levels, bool)]
    )
    shares = np.array([0.0, config.guard, config.calibration, config.test])
    shares[0] = 1 - shares.sum()
    sides = _stratify(strata, shares, np.random.default_rng(seed))
    if config.fold:
        sides = _hold_out(strata, sides, config, seed)
    for number, side in enumerate(SIDES):
        here = labels[sides == number, 0]
        intact, broken = int((here == 0).sum()), int((here == 1).sum())
        if not intact or not broken:
            raise UsageError(
                "cohort-too-small",
                f"{side} has {broken} fractured and {intact} intact of {len(patients)} patients",
            )
    return Splits(
        **{side: tuple(patients[sides == number].tolist()) for number, side in enumerate(SIDES)}
    )


def _hold_out(
    strata: NDArray[np.bool_], sides: NDArray[np.int64], config: SplitConfig, seed: int
) -> NDArray[np.int64]:
    """Make one fold guard and calibration, and everything but the test set the training set."""
    free = np.flatnonzero(sides != SIDES.index("test"))
    equal = np.full(config.folds, 1 / config.folds)
    folds = _stratify(strata[free], equal, np.random.default_rng([seed, 3]))
    held = free[folds == config.fold - 1]
    sides = sides.copy()
    sides[free] = SIDES.index("train")
    halves = _stratify(strata[held], np.full(2, 0.5), np.random.default_rng([seed, 4, config.fold]))
    sides[held] = np.array([SIDES.index("guard"), SIDES.index("calibration")])[halves]
    return sides


def _stratify(
    strata: NDArray[np.bool_], shares: NDArray[np.float64], generator: np.random.Generator
) -> NDArray[np.int64]:
    """Assign each row of `strata` to a split; the last column must be all true."""
    wanted = shares[:, None] * strata.sum(axis=0)
    sides = np.full(len(strata), -1)
    order = generator.permutation(len(strata))
    while (free := order[sides[order] < 0]).size:
        left = strata[free].sum(axis=0)
        rarest = int(np.where(left > 0, left, np.inf).argmin())
        for row in free[strata[free, rarest]]:
            # The split that lacks this label most; ties go to the one that lacks patients most.
            side = int(np.lexsort((wanted[:, -1], wanted[:, rarest]))[-1])
            sides[row] = side
            wanted[side, strata[row]] -= 1
    return sides
