"""The plan of a run: made from the tables, written down, and found again when it goes on."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from storage_schemas.errors import UsageError
from training.cohort import Study
from training.config import BoostConfig, RunConfig
from training.kinds import KINDS, Kind
from training.recipes import RECIPES
from training.rounds import RoundPlan, plan_rounds
from training.runs import ROUNDS, SETTINGS, SPLITS, RunFolder
from training.splits import Splits, split_patients


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
    recipe = RECIPES[config.recipe]
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
        elif run.read(name) != json.loads(json.dumps(document)):
            raise UsageError(
                "config-invalid", f"RUN holds another run, its {name} differs", key=str(run.path)
            )
