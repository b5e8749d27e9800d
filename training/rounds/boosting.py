"""The round loop: one round after another on the same model, and who judges it.

Patients are split and rounds are planned from the tables, and both are written down before anything
is trained. Each round trains on new patients and some of the earlier ones again. What it trained,
the moving average of that, and steps from the incumbent towards it are candidates: the calibration
patients fit the probabilities of each, and the guard patients judge it by the competition's loss.
The best one is the next incumbent where the guard gains more by it than the error of that gain (or
as many times it as the policy asks for), and the next round goes on from all that this one trained:
a mixture is the better model, but to start from it would give away what lies beyond it. Otherwise
the round is rolled back as a whole, and the next one starts from the incumbent itself. So the loss
on the guard never rises. Every decision is a line of the journal, written last. In the end the
incumbent is the model that the run offers, and a mixture of the accepted rounds stands beside it.

That is the recipe `boost`. `seed` and `joint` walk the same way and judge likewise, but replay
nothing and accept everything.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from presentation.progress import StageProgress, say_event
from storage_schemas.errors import RunError
from storage_schemas.store import StudyStore
from training.config import RunConfig
from training.data.cohort import Study, labelled, read_cohort
from training.data.crop_buffer import CropBuffer, open_buffer
from training.data.splits import SIDES
from training.models.kinds import load_any
from training.models.slice_model import is_cspine_model
from training.optimization.checkpoints import read_last_weights, write_last_weights
from training.optimization.scalars import Scalars, write_scalars
from training.optimization.trainer import Log, RoundWork, Trained
from training.ranks import is_first, wait
from training.rounds.candidates import (
    RAW,
    CandidateWeights,
    Decision,
    Weights,
    copy_weights,
    decide,
    list_candidates,
)
from training.rounds.offers import fit_round_ensemble, offer, save_round
from training.rounds.plan import RoundPlan, RunPlan, plan_run, write_plan
from training.rounds.validation import ValidationResult, ValidationSets, validate
from training.runs import HISTORY, METRICS, RunFolder


@dataclass(frozen=True)
class Incumbent:
    """The model that the next round has to beat.

    Parameters
    ----------
    number : int
        The round that made it; 0 is the start.
    model : PreTrainedModel
    result : ValidationResult or None
        None of a start that has learnt nothing of fractures yet: the first round has nothing to
        protect.
    last_weights : Path or None
        The weights that the next round goes on from; None where it starts from the model itself.
    """

    number: int
    model: PreTrainedModel
    result: ValidationResult | None
    last_weights: Path | None = None


def boost(store: StudyStore, run: RunFolder, config: RunConfig, start: Path | None) -> None:
    """Train all rounds that are not yet in the run folder; all ranks call it alike.

    Parameters
    ----------
    store : StudyStore
        With tables that hold labels.
    run : RunFolder
        New, or begun with the same settings; then finished rounds are kept, and one that was
        killed half-way goes on from its checkpoint.
    config : RunConfig
    start : Path or None
        A local checkpoint; None makes a new model from ``config.model``.

    Raises
    ------
    UsageError
        ``labels-missing``, ``cohort-too-small``, ``model-invalid``, or ``config-invalid`` where the
        folder holds a run of other settings.
    StoreError
        Of a shard that is missing or damaged.
    RunError
        ``run-unwritable``; ``training-diverged`` where nothing guards the rounds.
    """
    cohort = read_cohort(store)
    studies = labelled(cohort, store.url)
    plan, first = plan_run(studies, store.url, config, start)
    if is_first():
        write_plan(run, plan)
        say_event(
            "plan",
            **{side: len(getattr(plan.splits, side)) for side in SIDES},
            studies_without_labels_or_crops=len(cohort) - len(studies),
            rounds=len(plan.rounds),
            slices=sum(entry.slices for entry in plan.rounds),
            steps=sum(entry.steps for entry in plan.rounds),
        )
    wait()
    calibration, guard, train = (
        plan.splits.choose(studies, side) for side in ("calibration", "guard", "train")
    )
    with (
        _load(store, run, plan, calibration + guard, "read judges") as buffer,
        write_scalars(run.tensorboard) as scalars,
    ):
        sets = ValidationSets(calibration, guard, train, buffer)
        incumbent = _find_incumbent(run, plan, first, sets)
        for entry in plan.rounds[len(run.lines(HISTORY)) :]:
            incumbent = _run_round(store, run, plan, entry, incumbent, sets, scalars)
        if is_first():
            fit_round_ensemble(run, sets)
            offer(run, incumbent.number)
            run.drop_last_weights()


def _find_incumbent(
    run: RunFolder, plan: RunPlan, first: PreTrainedModel, sets: ValidationSets
) -> Incumbent:
    """The last accepted round, or the start, which is judged where it is a model of ours."""
    history = run.lines(HISTORY)
    number = history[-1]["incumbent"] if history else 0
    if number or run.has(run.validation_file(0)):
        model, _ = load_any(run.round_model(number))
        result = ValidationResult.from_json(run.read(run.validation_file(number)))
        goes_on = history and history[-1]["accepted"] and history[-1]["best"] != RAW
        return Incumbent(number, model, result, run.last_weights(number) if goes_on else None)
    if plan.start is None or not is_cspine_model(plan.start):
        return Incumbent(0, first, None)
    result = validate(first, plan.config.inputs, sets)
    if is_first():
        save_round(run, plan, 0, first, result, sets)
    wait()
    return Incumbent(0, first, result)


def _run_round(
    store: StudyStore,
    run: RunFolder,
    plan: RunPlan,
    entry: RoundPlan,
    incumbent: Incumbent,
    sets: ValidationSets,
    scalars: Scalars,
) -> Incumbent:
    """Train, judge, and accept or roll back one round; its line in the journal is written last."""
    began = time.monotonic()
    model, before = incumbent.model, copy_weights(incumbent.model)
    base = sum(earlier.steps for earlier in plan.rounds[: entry.number - 1])
    if incumbent.last_weights is not None:
        model.load_state_dict(read_last_weights(incumbent.last_weights))
    studies = [study for study in sets.train if study.study in {*entry.studies, *entry.replay}]
    with _load(store, run, plan, studies, f"read round {entry.number}") as buffer:
        with StageProgress(f"train round {entry.number}", entry.steps, "steps") as progress:
            log = _make_log(run, entry.number, base, progress, scalars)
            work = _work(run, plan, entry, incumbent, log)
            trained = _train(plan, model, buffer, work)
        last_weights = copy_weights(model)
        known = None if incumbent.result is None else before
        candidates = (
            () if trained is None else list_candidates(last_weights, known, trained, plan.policy)
        )
        results, best = _validate_candidates(plan, model, candidates, buffer, work, sets)
    decision = decide(sets, incumbent.result, results, plan.policy)
    following = replace(incumbent, last_weights=None)
    model.load_state_dict(before if decision.chosen is None else best)
    if decision.chosen is not None:
        path = None if decision.chosen == RAW else run.last_weights(entry.number)
        following = Incumbent(entry.number, model, results[decision.chosen], path)
    if is_first():
        if following.number == entry.number and following.result is not None:
            save_round(run, plan, entry.number, model, following.result, sets)
        if following.last_weights is not None:
            write_last_weights(following.last_weights, last_weights)
        seconds = round(time.monotonic() - began, 1)
        line = _line(plan, entry, following, decision, results, trained, sets, seconds)
        run.append(HISTORY, line)
        run.checkpoint.unlink(missing_ok=True)
        run.drop_last_weights(keep=following.last_weights)
        if following.result is not None:
            scalars("guard/loss", following.result.loss, base + entry.steps)
        say_event("round", **line)
    wait()
    return following


def _work(
    run: RunFolder, plan: RunPlan, entry: RoundPlan, incumbent: Incumbent, log: Log
) -> RoundWork:
    policy, train = plan.policy, plan.config.train
    learnt = incumbent.result is not None or plan.start is not None
    return RoundWork(
        number=entry.number,
        steps=entry.steps,
        rate=train.learning_rate * policy.rate_fall ** (entry.number - 1),
        layer_decay=policy.layer_decay if learnt else 1.0,
        ema=policy.ema_window,
        seed=1000 * plan.config.seed + entry.number,
        log=log,
        checkpoint=run.checkpoint,
    )


def _train(
    plan: RunPlan, model: PreTrainedModel, buffer: CropBuffer, work: RoundWork
) -> Trained | None:
    """Train the model, in place; None where it diverged and the guard will roll that back."""
    try:
        return plan.kind.train(model, plan.config.inputs, buffer, plan.config, work)
    except RunError as error:
        if error.kind != "training-diverged" or not plan.policy.guarded:
            raise
        say_event("diverged", round=work.number, reason=error.detail)
        return None


def _validate_candidates(
    plan: RunPlan,
    model: PreTrainedModel,
    candidates: Iterable[CandidateWeights],
    buffer: CropBuffer,
    work: RoundWork,
    sets: ValidationSets,
) -> tuple[dict[str, ValidationResult], Weights]:
    """What the judges say of each candidate, and the weights of the best one."""
    results: dict[str, ValidationResult] = {}
    best: Weights = {}
    inputs = plan.config.inputs
    for candidate in candidates:
        model.load_state_dict(candidate.weights)
        if candidate.stale_statistics:
            plan.kind.refresh(model, inputs, buffer, plan.config, work)
        result = validate(model, inputs, sets)
        if all(result.loss < other.loss for other in results.values()):
            best = copy_weights(model)
        results[candidate.name] = result
    if not results and not plan.policy.guarded:
        raise RunError("training-diverged", f"round {work.number} left weights that are no numbers")
    return results, best


def _line(
    plan: RunPlan,
    entry: RoundPlan,
    following: Incumbent,
    decision: Decision,
    results: Mapping[str, ValidationResult],
    trained: Trained | None,
    sets: ValidationSets,
    seconds: float,
) -> dict[str, Any]:
    """The round's line in the journal."""
    return {
        "round": entry.number,
        "studies": len(entry.studies),
        "slices": entry.slices,
        "replayed_slices": entry.replay_slices,
        "steps": entry.steps,
        "train_loss": None if trained is None else trained.loss,
        "candidates": {name: result.loss for name, result in results.items()},
        "best": decision.best,
        "gain": decision.gain,
        "gain_error": decision.error,
        "caution": plan.policy.caution if plan.policy.guarded else None,
        "accepted": decision.chosen is not None,
        "incumbent": following.number,
        "guard_loss": None if following.result is None else following.result.loss,
        "guard_best_constant": sets.best_constant,
        "seconds": seconds,
    }


@contextmanager
def _load(
    store: StudyStore, run: RunFolder, plan: RunPlan, studies: Sequence[Study], stage: str
) -> Iterator[CropBuffer]:
    crops, masks = sum(len(study.vertebrae) for study in studies), plan.config.inputs.mask
    with (
        StageProgress(stage, crops, "crops") as progress,
        open_buffer(store, studies, run.path, progress.advance, masks=masks) as buffer,
    ):
        progress.finish()
        yield buffer


def _make_log(
    run: RunFolder, number: int, base: int, progress: StageProgress, scalars: Scalars
) -> Log:
    def log(line: Mapping[str, Any]) -> None:
        if not is_first():
            return
        run.append(METRICS, {"round": number, **line})
        for name in ("loss", "learning_rate"):
            scalars(f"train/{name}", line[name], base + line["step"])
        progress.reach(
            line["step"], line["steps"], note=f"loss {line['loss']:.3f}", loss=line["loss"]
        )

    return log
