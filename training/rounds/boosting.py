"""The boosting loop: train one model in rounds, and keep a round only if the guard loss improves.

Patients are split and rounds are planned from the tables; both are saved before training starts.
Each round trains on new patients and replays some earlier ones. Its candidates are the weights of
the last step, their exponential moving average (EMA), and interpolations between the incumbent and
the EMA. Each candidate is calibrated on the calibration patients and scored on the guard patients
with the competition's loss.

The best candidate becomes the incumbent if its mean gain over the guard patients exceeds
``caution`` times the gain's standard error. The next round then continues from the weights of the
last step: interpolated weights often have the lowest guard loss but undo part of the update.
Otherwise the round is rolled back and the next one starts from the incumbent, so the guard loss
never increases. The last action of a round is to append its decision to the journal. After all
rounds, the incumbent is saved as the run's model, with an ensemble of the accepted rounds beside
it.

This describes the recipe `boost`. The recipes `seed` and `joint` use the same loop without replay
and accept every round.
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
    """The model that the candidates of the next round are compared with.

    Parameters
    ----------
    number : int
        Round that the model was accepted in, 0 for the starting model.
    model : PreTrainedModel
        Model with the incumbent's weights.
    result : ValidationResult or None
        Validation result of the model; None for a starting model that was not trained on fractures,
        after which the first round is always accepted.
    last_weights : Path or None
        File of the weights that the next round starts from; None if it starts from the model.
    """

    number: int
    model: PreTrainedModel
    result: ValidationResult | None
    last_weights: Path | None = None


def boost(store: StudyStore, run: RunFolder, config: RunConfig, start: Path | None) -> None:
    """Train all rounds of a run that are not finished yet; call it on every rank.

    Parameters
    ----------
    store : StudyStore
        Store whose tables hold labels.
    run : RunFolder
        New run folder, or one that was started with the same settings. Finished rounds are kept; a
        killed round resumes from its checkpoint.
    config : RunConfig
        Settings of the run.
    start : Path or None
        Local checkpoint to start from; None builds a new model from ``config.model``.

    Raises
    ------
    UsageError
        ``labels-missing``, ``cohort-too-small``, ``model-invalid``, or ``config-invalid`` if the
        folder holds a run with other settings.
    StoreError
        ``array-missing`` or ``array-damaged`` if a shard cannot be read.
    RunError
        ``run-unwritable``; ``training-diverged`` if an unguarded round diverges.
    """
    targets = store.targets()
    cohort = read_cohort(store, targets)
    studies = labelled(cohort, store.url)
    plan, first = plan_run(studies, store.url, config, start, targets)
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
        _load(store, run, plan, calibration + guard, "read validation sets") as buffer,
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
    """Load the last accepted model, or validate the starting model if it was trained here."""
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
    """Train, validate, and accept or roll back one round; the journal line is written last."""
    started = time.monotonic()
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
    decision = (plan.decide or decide)(sets, incumbent.result, results, plan.policy)
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
        seconds = round(time.monotonic() - started, 1)
        line = _journal_line(plan, entry, following, decision, results, trained, sets, seconds)
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
    pretrained = incumbent.result is not None or plan.start is not None
    return RoundWork(
        number=entry.number,
        steps=entry.steps,
        rate=train.learning_rate * policy.rate_fall ** (entry.number - 1),
        layer_decay=policy.layer_decay if pretrained else 1.0,
        ema=policy.ema_window,
        seed=1000 * plan.config.seed + entry.number,
        log=log,
        checkpoint=run.checkpoint,
    )


def _train(
    plan: RunPlan, model: PreTrainedModel, buffer: CropBuffer, work: RoundWork
) -> Trained | None:
    """Train the model in place; return None if a guarded round diverged."""
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
    """Validate each candidate; return the results and the weights of the best one."""
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
        raise RunError(
            "training-diverged", f"round {work.number} ended with weights that are not finite"
        )
    return results, best


def _journal_line(
    plan: RunPlan,
    entry: RoundPlan,
    following: Incumbent,
    decision: Decision,
    results: Mapping[str, ValidationResult],
    trained: Trained | None,
    sets: ValidationSets,
    seconds: float,
) -> dict[str, Any]:
    """Return the journal line of a round."""
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
        open_buffer(
            store, studies, plan.targets, run.path, progress.advance, masks=masks
        ) as buffer,
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
