"""Which patients train in which round: planned from the tables alone, before training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.cohort import Study
from training.config import RunConfig


@dataclass(frozen=True)
class RoundPlan:
    """One round.

    Parameters
    ----------
    number : int
        From 1.
    studies : tuple of str
        All studies of the round's patients.
    slices : int
        Inputs in them.
    """

    number: int
    studies: tuple[str, ...]
    slices: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` reads them back."""
        return {"number": self.number, "slices": self.slices, "studies": list(self.studies)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "RoundPlan":
        """Read what `to_json` wrote; raises KeyError or TypeError on anything else."""
        return cls(document["number"], tuple(document["studies"]), document["slices"])


def plan_rounds(studies: Sequence[Study], config: RunConfig) -> tuple[RoundPlan, ...]:
    """Cut the training patients into rounds of about as many slices as the settings ask for.

    Patients are shuffled within strata (scanner, number of broken levels) and the strata are
    spread evenly over the whole order, so that every round resembles the whole.

    Parameters
    ----------
    studies : sequence of Study
        Of the training patients.
    config : RunConfig
        ``train.rounds`` keeps only the first ones.
    """
    generator = np.random.default_rng([config.seed, 1])
    by_patient: dict[str, list[Study]] = {}
    for study in sorted(studies, key=lambda study: study.study):
        by_patient.setdefault(study.patient, []).append(study)
    strata: dict[tuple[str, int], list[str]] = {}
    for patient, own in sorted(by_patient.items()):
        key = (own[0].scanner, min(3, max(study.broken for study in own)))
        strata.setdefault(key, []).append(patient)
    places: list[tuple[float, str]] = []
    for _, patients in sorted(strata.items()):
        shuffled = generator.permutation(patients).tolist()
        places += [
            ((rank + generator.random()) / len(shuffled), name)
            for rank, name in enumerate(shuffled)
        ]
    order = [name for _, name in sorted(places)]
    slices = np.array([_count_slices(by_patient[name], config) for name in order])
    number = max(1, round(slices.sum() / config.train.slices_per_round))
    # A patient belongs to the round in which its middle slice falls.
    middles = np.cumsum(slices) - slices / 2
    rounds = np.minimum((middles * number / slices.sum()).astype(int), number - 1)
    plans: list[RoundPlan] = []
    for index in np.unique(rounds)[: config.train.rounds]:
        mine = [study for name in np.array(order)[rounds == index] for study in by_patient[name]]
        plans.append(
            RoundPlan(len(plans) + 1, tuple(s.study for s in mine), _count_slices(mine, config))
        )
    return tuple(plans)


def _count_slices(studies: Sequence[Study], config: RunConfig) -> int:
    trim = config.inputs.trim_mm
    return sum(len(vertebra.slices(trim)) for study in studies for vertebra in study.vertebrae)
