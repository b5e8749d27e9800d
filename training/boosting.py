"""The round loop: one round after another on the same model, and who judges it.

Patients are split and rounds are planned from the tables, and both are written down before anything
is trained. Each round starts from the incumbent, loads its own shards, trains by the recipe, and is
judged: the calibration patients fit its probabilities, and on the guard patients it gets the
competition's loss, beside the best constants of the training patients. Then it is saved whole and
is the next incumbent. After the last round the incumbent is the model that the run offers.
"""

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
from transformers import PreTrainedModel

from storage_schemas.errors import UsageError
from storage_schemas.store import StudyStore
from training.calibration import Calibration, fit_calibration
from training.cohort import Study, label_table, labelled, read_cohort
from training.config import InputConfig, RunConfig
from training.metric import best_constants, competition_loss
from training.models import build_model, load_model, save_model, start_model
from training.progress import StageProgress, say_event
from training.recipes import RECIPES
from training.rounds import RoundPlan, plan_rounds
from training.runs import CALIBRATION, HISTORY, METRICS, ROUNDS, SETTINGS, SPLITS, RunFolder
from training.scoring import score_studies
from training.shards import RoundShards, open_shards
from training.splits import SIDES, Splits, split_patients
from training.trainer import Log


@dataclass(frozen=True)
class RunPlan:
    """All that is decided before anything is trained.

    Parameters
    ----------
    config : RunConfig
    store : str
        URL.
    start : Path or None
        The checkpoint that the first round starts from.
    splits : Splits
    rounds : tuple of RoundPlan
    """

    config: RunConfig
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


@dataclass(frozen=True)
class Judges:
    """The studies that no round trains on, with their voxels.

    Parameters
    ----------
    calibration, guard, train : tuple of Study
        Of the training studies only the labels are used: they give the constants.
    shards : RoundShards
        Of the calibration and the guard studies.
    """

    calibration: tuple[Study, ...]
    guard: tuple[Study, ...]
    train: tuple[Study, ...]
    shards: RoundShards


@dataclass(frozen=True)
class Verdict:
    """How the guard patients judge a model.

    Parameters
    ----------
    calibration : Calibration
        Fitted for this model.
    loss, best_constant : float
        The competition's loss on the guard patients: the model's, and that of the best constants of
        the training patients.
    """

    calibration: Calibration
    loss: float
    best_constant: float


def boost(store: StudyStore, run: RunFolder, config: RunConfig, start: Path | None) -> None:
    """Train all rounds that are not yet in the run folder.

    Parameters
    ----------
    store : StudyStore
        With tables that hold labels.
    run : RunFolder
        New, or begun with the same settings; then finished rounds are kept.
    config : RunConfig
    start : Path or None
        A local checkpoint; None makes a ViT from ``config.model``.

    Raises
    ------
    UsageError
        ``labels-missing``, ``cohort-too-small``, ``model-invalid``, or ``config-invalid`` where the
        folder holds a run of other settings.
    StoreError
        Of a shard that is missing or damaged.
    RunError
        ``training-diverged``.
    """
    first, inputs = _first_model(config, start)
    cohort = read_cohort(store)
    studies = labelled(cohort, store.url)
    splits = split_patients(studies, config.split, config.seed)
    config = replace(config, inputs=inputs)
    rounds = plan_rounds(splits.choose(studies, "train"), config)
    plan = RunPlan(config, store.url, start, splits, rounds)
    _write_plan(run, plan)
    say_event(
        "plan",
        **{side: len(getattr(splits, side)) for side in SIDES},
        studies_without_labels_or_crops=len(cohort) - len(studies),
        rounds=len(rounds),
        slices=sum(entry.slices for entry in rounds),
    )
    calibration, guard = splits.choose(studies, "calibration"), splits.choose(studies, "guard")
    with _load(store, run, calibration + guard, "read judges") as shards:
        judges = Judges(calibration, guard, splits.choose(studies, "train"), shards)
        for entry in rounds[len(run.lines(HISTORY)) :]:
            incumbent = first
            if entry.number > 1:
                incumbent, _ = load_model(run.round_model(entry.number - 1))
            _train_round(store, run, plan, entry, incumbent, judges)
    _offer(run, rounds[-1].number)


def _first_model(config: RunConfig, start: Path | None) -> tuple[PreTrainedModel, InputConfig]:
    if start is None:
        return build_model(config.model, config.inputs, config.seed), config.inputs
    return start_model(start, config.inputs, config.seed)


def _write_plan(run: RunFolder, plan: RunPlan) -> None:
    """Write down what will be done, or find that the very same was begun before."""
    run.create()
    begun = run.has(SETTINGS)
    for name, document in plan.documents().items():
        if not begun:
            run.write(name, document)
        elif run.read(name) != json.loads(json.dumps(document)):
            raise UsageError(
                "config-invalid", f"RUN holds another run, its {name} differs", key=str(run.path)
            )


def _train_round(
    store: StudyStore,
    run: RunFolder,
    plan: RunPlan,
    entry: RoundPlan,
    model: PreTrainedModel,
    judges: Judges,
) -> None:
    """Train, judge and save one round; its line in the journal is written last."""
    config = plan.config
    began = time.monotonic()
    studies = [study for study in judges.train if study.study in set(entry.studies)]
    with (
        _load(store, run, studies, f"read round {entry.number}") as shards,
        StageProgress(f"train round {entry.number}", 1, "steps") as progress,
    ):
        train_loss = RECIPES[config.recipe](
            model,
            shards,
            inputs=config.inputs,
            config=config,
            number=entry.number,
            log=_tell(run, entry.number, progress),
        )
    verdict = _judge(model, config.inputs, judges)
    save_model(
        model,
        config.inputs,
        run.round_model(entry.number),
        card=_card(plan, entry, verdict),
        documents={CALIBRATION: verdict.calibration.to_json()},
    )
    line = {
        "round": entry.number,
        "studies": len(entry.studies),
        "slices": entry.slices,
        "train_loss": train_loss,
        "guard_loss": verdict.loss,
        "guard_best_constant": verdict.best_constant,
        "seconds": round(time.monotonic() - began, 1),
    }
    run.append(HISTORY, line)
    say_event("round", **line)


def _judge(model: PreTrainedModel, inputs: InputConfig, judges: Judges) -> Verdict:
    train_labels = label_table(judges.train)
    scores = score_studies(model, inputs, judges.shards, judges.calibration)
    calibration = fit_calibration(scores.score, label_table(judges.calibration), train_labels)
    guard = score_studies(model, inputs, judges.shards, judges.guard)
    labels = label_table(judges.guard)
    return Verdict(
        calibration,
        competition_loss(labels, calibration.probabilities(guard.score)),
        competition_loss(labels, best_constants(train_labels)),
    )


def _offer(run: RunFolder, number: int) -> None:
    """Copy a round's model to where the run offers it, whole or not at all."""
    partial = run.path / ".model.partial"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(run.round_model(number), partial)
    shutil.rmtree(run.model, ignore_errors=True)
    partial.rename(run.model)


@contextmanager
def _load(
    store: StudyStore, run: RunFolder, studies: Sequence[Study], stage: str
) -> Iterator[RoundShards]:
    crops = sum(len(study.vertebrae) for study in studies)
    with (
        StageProgress(stage, crops, "crops") as progress,
        open_shards(store, studies, run.path, progress.advance) as shards,
    ):
        progress.finish()
        yield shards


def _tell(run: RunFolder, number: int, progress: StageProgress) -> Log:
    def log(line: Mapping[str, Any]) -> None:
        run.append(METRICS, {"round": number, **line})
        progress.reach(
            line["step"], line["steps"], note=f"loss {line['loss']:.3f}", loss=line["loss"]
        )

    return log


def _card(plan: RunPlan, entry: RoundPlan, verdict: Verdict) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("training"), undefined=jinja2.StrictUndefined, autoescape=False
    )
    return environment.get_template("card.md.j2").render(
        config=plan.config,
        inputs=plan.config.inputs,
        plan=entry,
        rounds=len(plan.rounds),
        start="random weights" if plan.start is None else f"`{plan.start.name}`",
        guard=verdict,
    )
