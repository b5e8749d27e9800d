"""``cspine-training localizer STORE OUT.onnx``: train a network that finds C1 to C7.

Studies with masks are divided into folds by patient. A network is trained on all folds but one with
Dice and cross-entropy loss. The EMA of its weights is scored on the held-out fold, beside an
image-independent baseline, and exported as one ONNX file with a card, for `cspine-pipeline run
--localizer`. An interrupted training resumes from its last saved state.
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
"""Gradient clipping norm, for early batches with rare levels."""
_SAVES = 20
"""Number of times that the state is saved during a training."""


def train_localizer(store: StudyStore, out: Path, config: LocalizerConfig) -> LocalizerCard:
    """Train, score and export a localizer.

    Parameters
    ----------
    store : StudyStore
        Store with masks.
    out : Path
        ONNX file to write; its card is written beside it as ``.json``, and the state of an
        unfinished training as a hidden file.
    config : LocalizerConfig
        Settings of the training.

    Returns
    -------
    LocalizerCard
        Card of the localizer, with its scores.

    Raises
    ------
    UsageError
        ``labels-missing`` or ``cohort-too-small``; ``config-invalid`` if `out` cannot be written,
        or if an unfinished training with other settings or studies is found there.
    RunError
        ``training-diverged``, ``export-differs`` or ``run-unwritable``.
    StoreError
        ``array-missing``, ``array-damaged`` or ``array-mismatch`` for an overview.
    """
    _check_out(out)
    masked = read_masked(store)
    folds = assign_folds(masked, config.folds, config.seed)
    studies = [study.study for study in masked]
    held_out = np.flatnonzero(np.isin(studies, folds[config.fold]))
    train = np.setdiff1d(np.arange(len(studies)), held_out)
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
        network = _train(state, done, overviews, train, config, save)
        findings, guesses = _evaluate(network, overviews, train, held_out, config)
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
    """Check that the output can be written, before training starts."""
    reason = "" if out.suffix == ".onnx" else "OUT must end in .onnx"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.is_dir() or not os.access(out.parent, os.W_OK):
            reason = "cannot be written"
    except OSError as error:
        reason = reason_of(error)
    if reason:
        raise UsageError("config-invalid", reason, key=str(out))


def _begin(config: LocalizerConfig, device: torch.device) -> TrainingState:
    """Build the network, the optimizer and the EMA."""
    network = build_network(config, config.seed).to(device)
    optimizer = torch.optim.AdamW(
        network.parameters(), config.learning_rate, weight_decay=config.weight_decay
    )
    return TrainingState(network, optimizer, start_ema(network, config.ema_decay))


def _train(
    state: TrainingState,
    done: int,
    overviews: Overviews,
    train: NDArray[np.int64],
    config: LocalizerConfig,
    save: Callable[[int], None],
) -> LocalizerNetwork:
    """Take the remaining steps; return the network with the averaged weights."""
    network, ema = cast(LocalizerNetwork, state.model), cast(AveragedModel, state.ema)
    device = next(network.parameters()).device
    warmup = max(1, round(config.warmup * config.steps))
    # The first step has a positive rate, and the peak lasts two steps.
    schedule = warmup_cosine(state.optimizer, warmup, config.steps, done + (done < warmup))
    order = _sample_order(train, config)
    losses: list[float] = []
    with StageProgress("train localizer", config.steps, "steps") as progress:
        for _ in range(done):
            progress.advance()
        for step in range(done, config.steps):
            hu, places = _sample_batch(overviews, order[step], config, step, device)
            # Training runs in bfloat16 on a GPU; scoring runs in float32.
            with torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext():
                features = network.extract_features(hu)
                logits = network.classify_places(features, places.sample, places.place)
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


def _sample_order(train: NDArray[np.int64], config: LocalizerConfig) -> NDArray[np.int64]:
    """Sample the overviews of each step without replacement per pass, shape (steps, batch)."""
    random = np.random.default_rng(config.seed)
    wanted = config.steps * config.batch_size
    rounds = [random.permutation(train) for _ in range(-(-wanted // len(train)))]
    return np.concatenate(rounds)[:wanted].reshape(config.steps, config.batch_size)


def _sample_batch(
    overviews: Overviews,
    chosen: NDArray[np.int64],
    config: LocalizerConfig,
    step: int,
    device: torch.device,
) -> tuple[Tensor, Places]:
    """Return augmented cubes, shape (batch, 1, S, S, S), and sampled places of the loss."""
    # Seeded by the step, so that a resumed training samples the same values.
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
    train: NDArray[np.int64],
    held_out: Sequence[int] | NDArray[np.int64],
    config: LocalizerConfig,
) -> tuple[list[Finding], list[Finding]]:
    """Score the network and the constant baseline on the held-out studies."""
    guess = fit_baseline([overviews.classes[index] for index in train])
    device = next(network.parameters()).device
    findings: list[Finding] = []
    guesses: list[Finding] = []
    network.eval()
    with StageProgress("score localizer", len(held_out), "studies") as progress:
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
