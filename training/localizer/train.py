"""``cspine-training localizer STORE OUT.onnx``: learn where C1 to C7 lie, from studies with masks.

The masked studies are dealt into folds, all of a patient into one. A network learns from all folds
but one, with Dice and cross-entropy, and its averaged weights are judged on the fold that it never
saw, beside a guess that looks at no picture. Then they become one ONNX file with a card, which
`cspine-pipeline run --localizer` takes. A training that was stopped goes on where it stood.
"""

import math
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

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
from training.localizer.unet import LocalizerNetwork, build_network
from training.optimization.averaging import start_ema
from training.optimization.checkpoints import (
    TrainingState,
    batch_seed,
    resume_training,
    write_training,
)
from training.optimization.schedule import warmup_cosine

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
    saved = out.with_name(f".{out.name}.training.safetensors")
    settings = {"config": config.to_json(), "folds": sha256_json(folds)}
    state = _begin(config, device)
    done = resume_training(saved, state, settings)

    def save(step: int) -> None:
        write_training(saved, state, step, settings)

    with (
        StageProgress("read overviews", len(studies), "studies") as progress,
        open_overviews(store, studies, config.size, out.parent, progress.advance) as overviews,
    ):
        progress.finish()
        network = _train(state, done, overviews, learnt, config, save)
        findings, guesses = _evaluate(network, overviews, learnt, held_out, config)
        scored = score_levels(findings)
        examples = overviews.hu[held_out[:2], None].astype(np.float32)
    model, difference = export_network(network, config.size, examples)
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
    saved.unlink(missing_ok=True)
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


def _begin(config: LocalizerConfig, device: torch.device) -> TrainingState:
    """A training of no step yet."""
    network = build_network(config, config.seed).to(device)
    optimizer = torch.optim.AdamW(
        network.parameters(), config.learning_rate, weight_decay=config.weight_decay
    )
    return TrainingState(network, optimizer, start_ema(network, config.ema_decay))


def _train(
    state: TrainingState,
    done: int,
    overviews: Overviews,
    learnt: NDArray[np.int64],
    config: LocalizerConfig,
    save: Callable[[int], None],
) -> LocalizerNetwork:
    """Take the steps that are left; returns the network of the averaged weights."""
    network, ema = cast(LocalizerNetwork, state.model), cast(AveragedModel, state.ema)
    device = next(network.parameters()).device
    warmup = max(1, round(config.warmup * config.steps))
    # The first step learns already, and the peak holds for two steps.
    schedule = warmup_cosine(state.optimizer, warmup, config.steps, done + (done < warmup))
    order = _sample_order(learnt, config)
    losses: list[float] = []
    with StageProgress("train localizer", config.steps, "steps") as progress:
        for _ in range(done):
            progress.advance()
        for step in range(done, config.steps):
            hu, places = _sample_batch(overviews, order[step], config, step, device)
            # What was learnt in short numbers is judged in long ones.
            with torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext():
                features = network.see(hu)
                logits = network.name(features, places.sample, places.place)
            loss = place_loss(logits.float(), places)
            losses.append(float(loss.detach()))
            if not math.isfinite(losses[-1]):
                raise RunError("training-diverged", f"the loss is {losses[-1]} at step {step + 1}")
            state.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), _GRADIENT_NORM)
            state.optimizer.step()
            ema.update_parameters(network)
            if step + 1 != warmup:
                schedule.step()
            progress.advance()
            if (step + 1) % max(1, config.steps // _SAVES) == 0:
                save(step + 1)
                mean = round(float(np.mean(losses)), 4)
                progress.reach(step + 1, config.steps, f"loss {mean:.3f}", loss=mean)
                losses.clear()
        progress.finish()
    return cast(LocalizerNetwork, ema.module)


def _sample_order(learnt: NDArray[np.int64], config: LocalizerConfig) -> NDArray[np.int64]:
    """The overviews of each step, shape (steps, batch): all are drawn before any is again."""
    random = np.random.default_rng(config.seed)
    wanted = config.steps * config.batch_size
    rounds = [random.permutation(learnt) for _ in range(-(-wanted // len(learnt)))]
    return np.concatenate(rounds)[:wanted].reshape(config.steps, config.batch_size)


def _sample_batch(
    overviews: Overviews,
    chosen: NDArray[np.int64],
    config: LocalizerConfig,
    step: int,
    device: torch.device,
) -> tuple[Tensor, Places]:
    """Varied cubes, (batch, 1, S, S, S), and the places where they are judged."""
    # By the number of the step, so that a training that was stopped draws what it would have.
    generator = torch.Generator().manual_seed(batch_seed(config.seed, step))
    hu = torch.from_numpy(overviews.hu[chosen]).to(device).float()[:, None]
    classes = torch.from_numpy(overviews.classes[chosen]).to(device)[:, None]
    length_mm = torch.from_numpy(overviews.spacing_mm[chosen]) * config.size
    augment = config.augment
    if step >= config.steps * (1 - config.settle):
        augment = replace(augment, rotate_degrees=0.0, shift_mm=0.0, scale=0.0)
    hu, classes = transform_cubes(hu, classes, sample_transforms(length_mm, augment, generator))
    places = sample_places(classes, config.block, generator)
    return vary_hu(hu, config.augment, generator), places


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
