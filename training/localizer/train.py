"""``cspine-training localizer STORE OUT.onnx``: learn where C1 to C7 lie, from studies with masks.

The masked studies are dealt into folds, all of a patient into one. A network learns from all folds
but one, with Dice and cross-entropy, and its averaged weights are judged on the fold that it never
saw, beside a guess that looks at no picture. Then they become one ONNX file with a card, which
`cspine-pipeline run --localizer` takes. A training that was stopped goes on where it stood.
"""

import math
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from presentation.progress import StageProgress
from storage_schemas.canonical import sha256_json
from storage_schemas.errors import RunError, UsageError, reason_of
from storage_schemas.localizer_card import LocalizerCard
from storage_schemas.store import StudyStore
from training.localizer.config import LocalizerConfig
from training.localizer.loss import Places, place_loss, sample_places
from training.localizer.onnx_export import export_network, write_localizer
from training.localizer.overviews import (
    Overviews,
    assign_folds,
    open_overviews,
    read_masked,
    sample_transforms,
    transform_cubes,
    vary_hu,
)
from training.localizer.scores import (
    Finding,
    fit_baseline,
    score_baseline,
    score_classes,
    score_levels,
)
from training.localizer.state import LocalizerTraining, SavedTraining
from training.localizer.unet import LocalizerNetwork

PACKAGES = ("cspine", "torch", "monai", "onnx", "onnxruntime")
_GRADIENT_NORM = 12.0
"""The longest step; a first batch with a rare level would throw the weights far off."""
_SAVES = 20
"""How often a training is saved, so that it can go on."""


def train_localizer(store: StudyStore, out: Path, config: LocalizerConfig) -> LocalizerCard:
    """Train, judge and write a localizer.

    Parameters
    ----------
    store : StudyStore
        Of a run with masks.
    out : Path
        The ONNX file; its card goes beside it as ``.json``. While training runs, its state stands
        in a hidden file beside them.
    config : LocalizerConfig

    Returns
    -------
    LocalizerCard

    Raises
    ------
    UsageError
        ``labels-missing`` or ``cohort-too-small``; ``config-invalid`` where `out` cannot be
        written, or where a training stopped there that had other settings or studies.
    RunError
        ``training-diverged``, ``export-differs`` or ``run-unwritable``.
    StoreError
        Where an overview is missing or damaged.
    """
    _check_out(out)
    masked = read_masked(store)
    folds = assign_folds(masked, config.folds, config.seed)
    studies = [study.study for study in masked]
    held_out = np.flatnonzero(np.isin(studies, folds[config.fold]))
    learnt = np.setdiff1d(np.arange(len(studies)), held_out)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    training = LocalizerTraining.begin(config, device)
    saved = SavedTraining(out, {"config": config.to_json(), "folds": sha256_json(folds)})
    saved.load(training)
    with (
        StageProgress("read overviews", len(studies), "studies") as progress,
        open_overviews(store, studies, config.size, out.parent, progress.advance) as overviews,
    ):
        progress.finish()
        _train(training, overviews, learnt, config, saved)
        findings, guesses = _evaluate(training.ema, overviews, learnt, held_out, config)
        scored = score_levels(findings)
        examples = overviews.hu[held_out[:2], None].astype(np.float32)
    model, difference = export_network(training.ema, config.size, examples)
    card = LocalizerCard(
        size=config.size,
        folds=folds,
        held_out=config.fold,
        margin_mm=config.margin_mm,
        scores=scored,
        baseline=score_levels(guesses),
        misnamed=sum(finding.misnamed for finding in findings),
        difference=difference,
        versions={name: metadata.version(name) for name in PACKAGES},
    )
    write_localizer(model, card, out)
    saved.remove()
    return card


def _check_out(out: Path) -> None:
    """Refuse what cannot be written before hours are spent on it."""
    reason = "" if out.suffix == ".onnx" else "OUT ends in .onnx"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.is_dir() or not os.access(out.parent, os.W_OK):
            reason = "it cannot be written"
    except OSError as error:
        reason = reason_of(error)
    if reason:
        raise UsageError("config-invalid", reason, key=str(out))


def _train(
    training: LocalizerTraining,
    overviews: Overviews,
    learnt: NDArray[np.int64],
    config: LocalizerConfig,
    saved: SavedTraining,
) -> None:
    """Take the steps that are left."""
    device = next(training.network.parameters()).device
    order = _sample_order(learnt, config)
    losses: list[float] = []
    with StageProgress("train localizer", config.steps, "steps") as progress:
        for _ in range(training.step):
            progress.advance()
        while training.step < config.steps:
            step = training.step
            for group in training.optimizer.param_groups:
                group["lr"] = config.learning_rate * _rate(step, config)
            hu, places = _sample_batch(overviews, order[step], config, step, device)
            # What was learnt in short numbers is judged in long ones.
            with torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext():
                features = training.network.see(hu)
                logits = training.network.name(features, places.sample, places.place)
            loss = place_loss(logits.float(), places)
            losses.append(float(loss.detach()))
            if not math.isfinite(losses[-1]):
                raise RunError("training-diverged", f"the loss is {losses[-1]} at step {step + 1}")
            training.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(training.network.parameters(), _GRADIENT_NORM)
            training.optimizer.step()
            _follow(training, config)
            training.step += 1
            progress.advance()
            if training.step % max(1, config.steps // _SAVES) == 0:
                saved.save(training)
                mean = round(float(np.mean(losses)), 4)
                progress.reach(training.step, config.steps, f"loss {mean:.3f}", loss=mean)
                losses.clear()
        progress.finish()


def _sample_order(learnt: NDArray[np.int64], config: LocalizerConfig) -> NDArray[np.int64]:
    """The overviews of each step, shape (steps, batch): all are drawn before any is again."""
    random = np.random.default_rng(config.seed)
    wanted = config.steps * config.batch_size
    rounds = [random.permutation(learnt) for _ in range(-(-wanted // len(learnt)))]
    return np.concatenate(rounds)[:wanted].reshape(config.steps, config.batch_size)


def _rate(step: int, config: LocalizerConfig) -> float:
    """The share of the learning rate at a step: up along a line, down along a cosine."""
    warm = max(1, round(config.warmup * config.steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, config.steps - warm)))


def _sample_batch(
    overviews: Overviews,
    chosen: NDArray[np.int64],
    config: LocalizerConfig,
    step: int,
    device: torch.device,
) -> tuple[Tensor, Places]:
    """Varied cubes, (batch, 1, S, S, S), and the places where they are judged."""
    # By the number of the step, so that a training that was stopped draws what it would have.
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    hu = torch.from_numpy(overviews.hu[chosen]).to(device).float()[:, None]
    classes = torch.from_numpy(overviews.classes[chosen]).to(device)[:, None]
    length_mm = torch.from_numpy(overviews.spacing_mm[chosen]) * config.size
    augment = config.augment
    if step >= config.steps * (1 - config.settle):
        augment = replace(augment, rotate_degrees=0.0, shift_mm=0.0, scale=0.0)
    hu, classes = transform_cubes(hu, classes, sample_transforms(length_mm, augment, generator))
    places = sample_places(classes, config.block, generator)
    return vary_hu(hu, config.augment, generator), places


@torch.no_grad()
def _follow(training: LocalizerTraining, config: LocalizerConfig) -> None:
    """Move the averaged weights towards the new ones; at first faster, away from noise."""
    kept = min(config.ema_decay, (1 + training.step) / (10 + training.step))
    pairs = zip(training.ema.parameters(), training.network.parameters(), strict=True)
    for mean, new in pairs:
        mean.lerp_(new, 1 - kept)


def _evaluate(
    network: LocalizerNetwork,
    overviews: Overviews,
    learnt: NDArray[np.int64],
    held_out: Sequence[int] | NDArray[np.int64],
    config: LocalizerConfig,
) -> tuple[list[Finding], list[Finding]]:
    """What the network finds in the held-out studies, and what the constant guess does."""
    guess = fit_baseline([overviews.classes[index] for index in learnt])
    device = next(network.parameters()).device
    findings: list[Finding] = []
    guesses: list[Finding] = []
    network.eval()
    with StageProgress("judge localizer", len(held_out), "studies") as progress:
        for index in held_out:
            hu = torch.from_numpy(overviews.hu[index]).to(device).float()[None, None]
            with torch.inference_mode():
                found = network(hu)[0].argmax(dim=0).to("cpu", torch.uint8).numpy()
            told = overviews.classes[index], overviews.spacing_mm[index], config.margin_mm
            findings += score_classes(found, *told)
            guesses += score_baseline(guess, *told)
            progress.advance()
        progress.finish()
    return findings, guesses
