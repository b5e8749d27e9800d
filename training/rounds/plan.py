"""The plan of a run: made from the tables, written down, and found again when it goes on."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from storage_schemas.errors import UsageError
from training.config import BoostConfig, RunConfig
from training.data.cohort import Study
from training.data.splits import Splits, split_patients
from training.models.kinds import KINDS, Kind
from training.rounds.recipes import find_recipe
from training.runs import ROUNDS, SETTINGS, SPLITS, RunFolder

Count = Callable[[Study], int]


@dataclass(frozen=True)
class RoundPlan:
    """One round.

    Parameters
    ----------
    number : int
        From 1.
    studies : tuple of str
        All studies of the round's new patients.
    slices : int
        Inputs in them.
    replay : tuple of str
        All studies of the patients of earlier rounds that come again.
    replay_slices : int
        Inputs in them.
    steps : int
        Of the optimizer, by the round's new inputs: what is replayed takes the place of new ones.
    """

    number: int
    studies: tuple[str, ...]
    slices: int
    replay: tuple[str, ...]
    replay_slices: int
    steps: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` reads them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "RoundPlan":
        """Read what `to_json` wrote; raises KeyError or TypeError on anything else."""
        lists = {name: tuple(document[name]) for name in ("studies", "replay")}
        return cls(**{**document, **lists})


Patients = list[list[Study]]
"""All studies of each patient."""


def plan_rounds(
    studies: Sequence[Study],
    config: RunConfig,
    count: Count,
    *,
    replay: float = 0.0,
    one_round: bool = False,
) -> tuple[RoundPlan, ...]:
    """Cut the training patients into rounds of about as many slices as the settings ask for.

    Patients are shuffled within strata (scanner, number of broken levels) and the strata are
    spread evenly over the whole order, so that every round resembles the whole. By ``train.order``
    that is so of each site alone, and sites come one after another, in an order that is drawn.

    Parameters
    ----------
    studies : sequence of Study
        Of the training patients.
    config : RunConfig
        ``train.rounds`` keeps only the first ones.
    count : callable
        Inputs of a study that can be trained on.
    replay : float
        Share of a round's slices that come from patients of earlier rounds.
    one_round : bool
        Put all rounds into one, which has the steps of all of them.
    """
    generator = np.random.default_rng([config.seed, 1])
    rounds = [
        part
        for site in _by_site(studies, config, generator)
        for part in _cut(_spread(site, generator), config)
    ][: config.train.rounds]
    batch = config.train.batch_size * config.train.accumulation
    steps = [
        max(1, round(sum(map(count, _studies(part))) * config.train.epochs / batch))
        for part in rounds
    ]
    if one_round:
        rounds, steps = [list(chain.from_iterable(rounds))], [sum(steps)]
    plans = []
    for number, part in enumerate(rounds, start=1):
        new = _studies(part)
        slices = _count_slices(new, config)
        earlier = list(chain.from_iterable(rounds[: number - 1]))
        sampled = _spread(earlier, np.random.default_rng([config.seed, 2, number]))
        again = _studies(_first(sampled, replay / (1 - replay) * slices, config))
        plans.append(
            RoundPlan(
                number,
                tuple(study.study for study in new),
                slices,
                tuple(study.study for study in again),
                _count_slices(again, config),
                steps[number - 1],
            )
        )
    return tuple(plans)


def _by_site(
    studies: Sequence[Study], config: RunConfig, generator: np.random.Generator
) -> list[Patients]:
    """The patients of each site, or all of them as one."""
    by_patient: dict[str, list[Study]] = {}
    for study in sorted(studies, key=lambda study: study.study):
        by_patient.setdefault(study.patient, []).append(study)
    patients = [own for _, own in sorted(by_patient.items())]
    if config.train.order == "shuffled":
        return [patients]
    sites: dict[str, Patients] = {}
    for own in patients:
        sites.setdefault(own[0].scanner, []).append(own)
    return [sites[name] for name in generator.permutation(sorted(sites)).tolist()]


def _spread(patients: Patients, generator: np.random.Generator) -> Patients:
    """Shuffle, so that every part of the order resembles the whole."""
    strata: dict[tuple[str, int], Patients] = {}
    for own in patients:
        key = (own[0].scanner, min(3, max(study.fractured_levels for study in own)))
        strata.setdefault(key, []).append(own)
    places: list[tuple[float, str, list[Study]]] = []
    for _, mine in sorted(strata.items()):
        order = generator.permutation(len(mine)).tolist()
        for rank, index in enumerate(order):
            place = (rank + generator.random()) / len(order)
            places.append((place, mine[index][0].patient, mine[index]))
    return [own for _, _, own in sorted(places, key=lambda place: place[:2])]


def _cut(order: Patients, config: RunConfig) -> list[Patients]:
    slices = np.array([_count_slices(own, config) for own in order])
    number = max(1, round(slices.sum() / config.train.slices_per_round))
    # A patient belongs to the round in which its middle slice falls.
    middles = np.cumsum(slices) - slices / 2
    rounds = np.minimum((middles * number / slices.sum()).astype(int), number - 1)
    return [
        [own for own, mine in zip(order, rounds, strict=True) if mine == index]
        for index in np.unique(rounds)
    ]


def _first(order: Patients, slices: float, config: RunConfig) -> Patients:
    """The first patients with about so many slices together."""
    sizes = np.array([_count_slices(own, config) for own in order], int)
    return order[: int((np.cumsum(sizes) - sizes / 2 < slices).sum())]


def _studies(patients: Patients) -> list[Study]:
    return [study for own in patients for study in own]


def _count_slices(studies: Sequence[Study], config: RunConfig) -> int:
    trim = config.inputs.trim_mm
    return sum(len(vertebra.slices(trim)) for study in studies for vertebra in study.vertebrae)


@dataclass(frozen=True)
class RunPlan:
    """All that is decided before anything is trained.

    Parameters
    ----------
    config : RunConfig
        With the inputs of the checkpoint, where the run starts from one.
    kind : Kind
    policy : BoostConfig
        What of `config.boost` the recipe takes.
    store : str
        URL.
    start : Path or None
        The checkpoint that the first round starts from.
    splits : Splits
    rounds : tuple of RoundPlan
    """

    config: RunConfig
    kind: Kind
    policy: BoostConfig
    store: str
    start: Path | None
    splits: Splits
    rounds: tuple[RoundPlan, ...]

    def documents(self) -> dict[str, Any]:
        """The plan as it stands in the run folder: JSON values by file name."""
        start = None if self.start is None else str(self.start)
        return {
            SPLITS: self.splits.to_json(),
            ROUNDS: [plan.to_json() for plan in self.rounds],
            SETTINGS: {"config": self.config.to_json(), "store": self.store, "start": start},
        }


def plan_run(
    studies: tuple[Study, ...], store: str, config: RunConfig, start: Path | None
) -> tuple[RunPlan, PreTrainedModel]:
    """Split the patients, plan the rounds, and make the model that the first one starts from.

    Raises
    ------
    UsageError
        ``cohort-too-small``, ``config-invalid`` or ``model-invalid``.
    """
    recipe = find_recipe(config.recipe)
    kind, policy = KINDS[recipe.kind], recipe.policy(config)
    model, inputs = kind.start(config, start)
    splits = split_patients(studies, config.split, config.seed)
    config = replace(config, inputs=inputs)
    rounds = plan_rounds(
        splits.choose(studies, "train"),
        config,
        lambda study: kind.count(study, config),
        replay=policy.replay,
        one_round=recipe.one_round,
    )
    return RunPlan(config, kind, policy, store, start, splits, rounds), model


def write_plan(run: RunFolder, plan: RunPlan) -> None:
    """Write down what will be done, or find that the very same was begun before.

    Raises
    ------
    UsageError
        ``config-invalid`` where the folder holds a run of other settings.
    """
    run.create()
    begun = run.has(SETTINGS)
    for name, document in plan.documents().items():
        if not begun:
            run.write(name, document)
        elif _read_document(run, name) != json.loads(json.dumps(document)):
            raise UsageError(
                "config-invalid", f"RUN holds another run, its {name} differs", key=str(run.path)
            )


def _read_document(run: RunFolder, name: str) -> Any:
    """A document of the plan, with the names that settings have today."""
    document = run.read(name)
    if name != SETTINGS:
        return document
    config = RunConfig.from_json(document["config"]).to_json()
    return json.loads(json.dumps({**document, "config": config}))
