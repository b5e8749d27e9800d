"""The plan of a run: patient splits and rounds, made from the tables and saved before training."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from storage_schemas.errors import UsageError
from storage_schemas.targets import COMPETITION, Targets
from training.config import BoostConfig, RunConfig
from training.data.cohort import Study
from training.data.splits import Splits, split_patients
from training.models.kinds import KINDS, Kind
from training.rounds.candidates import Decision
from training.rounds.recipes import find_recipe
from training.runs import ROUNDS, SETTINGS, SPLITS, TARGETS, RunFolder

Count = Callable[[Study], int]


@dataclass(frozen=True)
class RoundPlan:
    """The plan of one round.

    Parameters
    ----------
    number : int
        Number of the round, from 1.
    studies : tuple of str
        Studies of the round's new patients.
    slices : int
        Number of inputs of the new patients, from vertebrae with a known label.
    replay : tuple of str
        Studies of replayed patients of earlier rounds.
    replay_slices : int
        Number of inputs of the replayed patients, from vertebrae with a known label.
    steps : int
        Optimizer steps, in proportion to the round's new inputs; replay adds no steps.
    """

    number: int
    studies: tuple[str, ...]
    slices: int
    replay: tuple[str, ...]
    replay_slices: int
    steps: int

    def to_json(self) -> dict[str, Any]:
        """Return JSON values that `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "RoundPlan":
        """Read the output of `to_json`; raises KeyError or TypeError otherwise."""
        lists = {name: tuple(document[name]) for name in ("studies", "replay")}
        return cls(**{**document, **lists})


Patients = list[list[Study]]
"""Studies grouped by patient."""


def plan_rounds(
    studies: Sequence[Study],
    config: RunConfig,
    count: Count,
    *,
    replay: float = 0.0,
    one_round: bool = False,
) -> tuple[RoundPlan, ...]:
    """Divide the training patients into rounds of about ``slices_per_round`` slices.

    Patients are shuffled within strata (scanner, number of fractured levels), and the strata are
    spread evenly, so that all rounds have a similar composition. With ``train.order`` "site", this
    is done within each site, and sites follow one another in random order.

    Parameters
    ----------
    studies : sequence of Study
        Studies of the training patients.
    config : RunConfig
        Settings of the run; ``train.rounds`` limits the number of rounds.
    count : callable
        Returns the number of trainable inputs of a study.
    replay : float
        Fraction of a round's slices that comes from patients of earlier rounds.
    one_round : bool
        Whether to merge all rounds into one that has the steps of all of them.

    Raises
    ------
    UsageError
        ``labels-missing`` if no study has a trainable input.
    """
    generator = np.random.default_rng([config.seed, 1])
    parts = [
        part
        for site in _by_site(studies, config, generator)
        for part in _cut(_spread(site, generator), config)
    ]
    rounds = _join_empty(parts, count)[: config.train.rounds]
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
    """Group the patients by site, or put them all into one group."""
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
    """Shuffle the patients so that every part of the order has the same composition."""
    strata: dict[tuple[str, int], Patients] = {}
    for own in patients:
        key = (own[0].scanner, min(3, max(map(_fractured_levels, own))))
        strata.setdefault(key, []).append(own)
    places: list[tuple[float, str, list[Study]]] = []
    for _, mine in sorted(strata.items()):
        order = generator.permutation(len(mine)).tolist()
        for rank, index in enumerate(order):
            place = (rank + generator.random()) / len(order)
            places.append((place, mine[index][0].patient, mine[index]))
    return [own for _, _, own in sorted(places, key=lambda place: place[:2])]


def _fractured_levels(study: Study) -> int:
    """Least number of fractured levels; at least one is in a study that is labelled fractured."""
    return max(study.fractured_levels, int(study.labels[0] == 1))


def _cut(order: Patients, config: RunConfig) -> list[Patients]:
    slices = np.array([_count_slices(own, config) for own in order])
    if not slices.any():
        return [order]
    number = max(1, round(slices.sum() / config.train.slices_per_round))
    # A patient belongs to the round that contains its middle slice.
    middles = np.cumsum(slices) - slices / 2
    rounds = np.minimum((middles * number / slices.sum()).astype(int), number - 1)
    return [
        [own for own, mine in zip(order, rounds, strict=True) if mine == index]
        for index in np.unique(rounds)
    ]


def _join_empty(parts: Sequence[Patients], count: Count) -> list[Patients]:
    """Join rounds without a trainable input, whose vertebrae are unlabelled, to a neighbour."""
    rounds: list[Patients] = []
    trainable = True
    for part in parts:
        inputs = any(count(study) for study in _studies(part))
        if rounds and not (inputs and trainable):
            rounds[-1] = rounds[-1] + part
            trainable |= inputs
        else:
            rounds.append(part)
            trainable = inputs
    if not trainable:
        raise UsageError("labels-missing", "no vertebra of the training patients has a label")
    return rounds


def _first(order: Patients, slices: float, config: RunConfig) -> Patients:
    """Return the first patients, up to about `slices` slices."""
    sizes = np.array([_count_slices(own, config) for own in order], int)
    return order[: int((np.cumsum(sizes) - sizes / 2 < slices).sum())]


def _studies(patients: Patients) -> list[Study]:
    return [study for own in patients for study in own]


def _count_slices(studies: Sequence[Study], config: RunConfig) -> int:
    """Count the slices of vertebrae with a known label."""
    trim = config.inputs.trim_mm
    return sum(
        len(vertebra.slices(trim))
        for study in studies
        for vertebra in study.vertebrae
        if vertebra.fractured is not None
    )


@dataclass(frozen=True)
class RunPlan:
    """Everything that is decided before training.

    Parameters
    ----------
    config : RunConfig
        Settings of the run, with the input settings of the starting checkpoint.
    kind : Kind
        Kind of model that is trained.
    policy : BoostConfig
        Boosting settings after the recipe has been applied.
    store : str
        URL of the store.
    start : Path or None
        Checkpoint that the first round starts from.
    splits : Splits
        Patients of each split.
    rounds : tuple of RoundPlan
        Plans of the rounds, in order.
    targets : Targets
        Targets of the store.
    decide : callable or None
        Function of the recipe that accepts a candidate or none, with the parameters of
        `training.rounds.candidates.decide`; None for that function.
    """

    config: RunConfig
    kind: Kind
    policy: BoostConfig
    store: str
    start: Path | None
    splits: Splits
    rounds: tuple[RoundPlan, ...]
    targets: Targets
    decide: Callable[..., Decision] | None = None

    def documents(self) -> dict[str, Any]:
        """Return the documents of the plan in the run folder: JSON values by file name."""
        start = None if self.start is None else str(self.start)
        settings = {"config": self.config.to_json(), "store": self.store, "start": start}
        if self.targets != COMPETITION:
            settings[TARGETS] = self.targets.to_json()
        return {
            SPLITS: self.splits.to_json(),
            ROUNDS: [plan.to_json() for plan in self.rounds],
            SETTINGS: settings,
        }


def plan_run(
    studies: tuple[Study, ...],
    store: str,
    config: RunConfig,
    start: Path | None,
    targets: Targets,
) -> tuple[RunPlan, PreTrainedModel]:
    """Split the patients, plan the rounds and make the starting model.

    Parameters
    ----------
    studies : tuple of Study
        Labelled studies of the store.
    store : str
        URL of the store.
    config : RunConfig
        Settings of the run.
    start : Path or None
        Local checkpoint to start from; None builds a new model.
    targets : Targets
        Targets of the store.

    Raises
    ------
    UsageError
        ``cohort-too-small``, ``config-invalid``, ``labels-missing`` or ``model-invalid``.
    """
    recipe = find_recipe(config.recipe)
    kind, policy = KINDS[recipe.kind], recipe.policy(config)
    if recipe.train is not None:
        kind = replace(kind, train=recipe.train)
    model, inputs = kind.start(config, start, targets)
    splits = split_patients(studies, config.split, config.seed)
    config = replace(config, inputs=inputs)
    rounds = plan_rounds(
        splits.choose(studies, "train"),
        config,
        lambda study: kind.count(study, config),
        replay=policy.replay,
        one_round=recipe.one_round,
    )
    plan = RunPlan(config, kind, policy, store, start, splits, rounds, targets)
    return replace(plan, decide=recipe.decide), model


def write_plan(run: RunFolder, plan: RunPlan) -> None:
    """Save the plan, or check that the run folder holds the same plan.

    Raises
    ------
    UsageError
        ``config-invalid`` if the folder holds a run with other settings.
    """
    run.create()
    begun = run.has(SETTINGS)
    for name, document in plan.documents().items():
        if not begun:
            run.write(name, document)
        elif _read_document(run, name) != json.loads(json.dumps(document)):
            raise UsageError(
                "config-invalid",
                f"RUN holds a different run: its {name} differs",
                key=str(run.path),
            )


def _read_document(run: RunFolder, name: str) -> Any:
    """Read a document of the plan; names of settings from earlier versions are converted."""
    document = run.read(name)
    if name != SETTINGS:
        return document
    config = RunConfig.from_json(document["config"]).to_json()
    return json.loads(json.dumps({**document, "config": config}))
