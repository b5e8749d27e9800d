"""Building sequence models, and training them on the crops of a round.

A round has two parts. First the encoder and its classifier are trained through the current heads
(in a new model, a soft maximum over the slices), on few slices of many vertebrae in each step, with
vertebra labels and, where they are known, slice labels and boxes. Then the heads are trained on
whole patients, from encoder features that are computed once. With a frozen encoder only the second
part remains.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from storage_schemas.errors import UsageError
from storage_schemas.targets import Targets
from training.config import InputConfig, RunConfig
from training.data.cohort import Study
from training.data.crop_buffer import CropBuffer
from training.data.inputs import cover_patches, index_slices
from training.models.encoders import build_encoder, read_classifier, run_encoder, start_encoder
from training.models.patches import box_loss, has_patch_logits, patch_logits
from training.models.sequence_inputs import (
    PatientIndex,
    gather_patients,
    index_patients,
    make_patient_pixels,
    sample_positions,
    sample_vertebra_transforms,
)
from training.models.sequence_loss import LossWeights, PatientTargets, find_targets, sequence_loss
from training.models.sequence_model import (
    MODEL_TYPE,
    CervicalSequenceConfig,
    CervicalSequenceModel,
    load_sequence_model,
)
from training.models.sequence_scoring import find_features, is_frozen
from training.models.slice_model import is_cspine_model, load_model, read_model_type
from training.models.slice_training import sample_order
from training.optimization.averaging import keeps_statistics, recount_statistics
from training.optimization.trainer import Examples, Loss, RoundWork, Trained, fit, replay
from training.ranks import ranks

_ALONE = LossWeights(patient=0.0)


# ---- starting -----------------------------------------------------------------------------------


def start_sequence_model(
    config: RunConfig, folder: Path | None, targets: Targets
) -> tuple[PreTrainedModel, InputConfig]:
    """Build a new sequence model, or start from a checkpoint.

    A sequence model is loaded as it is. From a slice model of this package the encoder and the
    classifier are taken, from any other image model the encoder.

    Parameters
    ----------
    config : RunConfig
        Settings of the run.
    folder : Path or None
        Folder of the checkpoint; None builds a new model.
    targets : Targets
        Targets of the store, whose levels the model reads.

    Raises
    ------
    UsageError
        ``config-invalid``, or ``model-invalid``, also where the checkpoint has other levels.
    """
    inputs = config.inputs
    if folder is not None and read_model_type(folder) == MODEL_TYPE:
        found, inputs = load_sequence_model(folder)
        _check_levels(found, targets, folder)
        return _freeze(found, config), inputs
    torch.manual_seed(config.seed)
    head = None
    if folder is None:
        encoder, head = build_encoder(config.model, inputs, config.seed)
    else:
        encoder, normalisation = start_encoder(folder, inputs)
        inputs = replace(inputs, **normalisation)  # type: ignore[arg-type]
        if is_cspine_model(folder):
            head = read_classifier(load_model(folder)[0])
    torch.manual_seed(config.seed)
    settings = config.sequence
    model = CervicalSequenceModel(
        CervicalSequenceConfig(
            encoder.config,
            positions=settings.positions,
            pooling=settings.pooling,
            width=settings.width,
            layers=settings.layers,
            patient_width=settings.patient_width,
            dropout=settings.dropout,
            levels=targets.levels,
        )
    )
    model.encoder.load_state_dict(encoder.state_dict())
    if head is not None:
        model.classifier.load_state_dict(head.state_dict())
    return _freeze(model, config), inputs


def _check_levels(model: CervicalSequenceModel, targets: Targets, folder: Path) -> None:
    if tuple(model.config.levels) != targets.levels:
        reason = f"its levels are {model.config.levels}, those of STORE {list(targets.levels)}"
        raise UsageError("model-invalid", reason, key=str(folder))


def _freeze(model: CervicalSequenceModel, config: RunConfig) -> CervicalSequenceModel:
    for name, parameter in model.encoder.named_parameters():
        # A mask token is used in pretraining only; DDP would wait for its gradient.
        parameter.requires_grad_(not config.sequence.frozen and not name.endswith("mask_token"))
    return model


def count_positions(study: Study, config: RunConfig) -> int:
    """Count the slices of a study's labelled vertebrae, from which positions are sampled."""
    return sum(
        len(vertebra.slices(config.inputs.trim_mm))
        for vertebra in study.vertebrae
        if vertebra.fractured is not None
    )


# ---- training -----------------------------------------------------------------------------------


def train_sequences(
    model: PreTrainedModel,
    inputs: InputConfig,
    buffer: CropBuffer,
    config: RunConfig,
    work: RoundWork,
) -> Trained:
    """Train a sequence model in place; see the module's description and `fit`."""
    model = cast(CervicalSequenceModel, model)
    if is_frozen(model):
        return _train_heads(model, inputs, buffer, config, work)
    round_ = _plan(model, inputs, buffer, config, work)
    loss = _vertebra_loss(model, inputs, config)
    with _frozen(model.positions, model.patient):
        trained = fit(
            model,
            _examples(buffer, round_, inputs),
            round_.order,
            loss,
            config=config.train,
            work=work,
        )
    if not config.sequence.head_epochs:
        return trained
    patients = sum(1 for study in buffer.studies if study.has_labels)
    steps = max(1, round(config.sequence.head_epochs * patients / config.sequence.head_batch))
    quiet = replace(work, steps=steps, log=lambda line: None, checkpoint=None, ema=0.0)
    _train_heads(model, inputs, buffer, config, quiet)
    if trained.ema is None:
        return trained
    heads = {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if not name.startswith("encoder.")
    }
    return Trained(trained.loss, {**trained.ema, **heads})


@dataclass(frozen=True)
class _Round:
    """The sampled vertebrae of a round, their targets, and their order."""

    index: PatientIndex
    targets: PatientTargets
    order: NDArray[np.int64]


def _examples(buffer: CropBuffer, round_: _Round, inputs: InputConfig) -> Examples:
    def gather(rows: NDArray[np.int64]) -> dict[str, Tensor]:
        batch = gather_patients(buffer, round_.index[rows], inputs)
        return batch | round_.targets[rows].tensors()

    return Examples(len(round_.index), gather)


def _plan(
    model: CervicalSequenceModel,
    inputs: InputConfig,
    buffer: CropBuffer,
    config: RunConfig,
    work: RoundWork,
) -> _Round:
    crops = [n for n, vertebra in enumerate(buffer.vertebrae) if vertebra.fractured is not None]
    count, trim = min(config.sequence.sampled, model.config.positions), inputs.trim_mm
    # As many slices per step as for a slice model, with the same share of fractured vertebrae.
    slices = index_slices(buffer, crops, trim, weak_target=1.0)
    each = np.mean([min(count, len(buffer.vertebrae[crop].slices(trim))) for crop in crops])
    order = sample_order(
        slices.target,
        fractured_share=config.train.fractured_share,
        batch=_shared(round(config.train.batch_size * config.train.accumulation / each)),
        steps=work.steps,
        seed=work.seed,
    )
    random = np.random.default_rng([work.seed, 5])
    crop, z = slices.crop[order.ravel()], slices.z[order.ravel()]
    chosen = [buffer.vertebrae[number] for number in crop]
    levels = buffer.targets.levels
    index = PatientIndex.of_single(
        crop,
        np.array([levels.index(vertebra.level) for vertebra in chosen]),
        np.stack(
            [
                sample_positions(vertebra, int(around), count, trim, random)
                for vertebra, around in zip(chosen, z, strict=True)
            ]
        ),
        len(levels),
    )
    targets = find_targets(buffer, index)
    # If all sampled slices are labelled, the vertebra's label adds no information.
    labelled = (~np.isnan(targets.position) | ~index.valid).all(axis=2)
    targets.vertebra[labelled] = np.nan
    return _Round(index, targets, np.arange(order.size).reshape(order.shape))


def _shared(batch: int) -> int:
    """Round a batch size down to a multiple of the number of ranks."""
    return max(1, batch // ranks()) * ranks()


def _vertebra_loss(model: CervicalSequenceModel, inputs: InputConfig, config: RunConfig) -> Loss:
    """Loss of vertebrae, positions and bounding boxes."""
    weight = config.train.box_weight if has_patch_logits(model.encoder) else 0.0

    def loss(wrapped: Any, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        transforms = sample_vertebra_transforms(batch, config.augment, generator)
        pixels = make_patient_pixels(batch, inputs, transforms, config.augment, generator)
        output = wrapped(pixel_values=pixels, valid=batch["valid"])
        found = sequence_loss(output, batch, _ALONE)
        if not weight:
            return found
        each = patch_logits(output.patches, model.classifier, model.encoder).float()
        covered = cover_patches(batch, inputs, transforms, math.isqrt(each.shape[1]))
        intact = batch["position_target"][batch["valid"]] == 0
        return found + weight * box_loss(each, covered, intact)

    return loss


def _train_heads(
    model: CervicalSequenceModel,
    inputs: InputConfig,
    buffer: CropBuffer,
    config: RunConfig,
    work: RoundWork,
) -> Trained:
    """Train the heads on encoder features of whole patients."""
    settings = config.sequence
    known = [study for study in buffer.studies if study.has_labels]
    index = index_patients(
        buffer, [study.study for study in known], model.config.positions, inputs.trim_mm
    )
    targets = find_targets(buffer, index, known)
    features = find_features(model, inputs, buffer, index)
    batch = _shared(min(settings.head_batch, len(index)))
    order = sample_order(
        np.zeros(len(index), np.float32),
        fractured_share=0,
        batch=batch,
        steps=work.steps,
        seed=work.seed,
    )

    def loss(wrapped: Any, part: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        return sequence_loss(
            wrapped(features=part["features"], valid=part["valid"]), part, LossWeights()
        )

    def gather(rows: NDArray[np.int64]) -> dict[str, Tensor]:
        return {
            "features": torch.from_numpy(features[rows].astype(np.float32)),
            "valid": torch.from_numpy(index[rows].valid),
            **targets[rows].tensors(),
        }

    with _frozen(model.encoder):
        return fit(
            model,
            Examples(len(index), gather),
            order,
            loss,
            config=replace(config.train, batch_size=batch),
            work=replace(work, rate=settings.head_rate),
        )


@contextmanager
def _frozen(*modules: torch.nn.Module) -> Iterator[None]:
    """Freeze some modules within the block."""
    parameters = [parameter for module in modules for parameter in module.parameters()]
    before = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, requires in zip(parameters, before, strict=True):
            parameter.requires_grad_(requires)


def refresh_sequences(
    model: PreTrainedModel,
    inputs: InputConfig,
    buffer: CropBuffer,
    config: RunConfig,
    work: RoundWork,
) -> None:
    """Recompute the batch-normalisation statistics of the encoder, see `recount_statistics`."""
    model = cast(CervicalSequenceModel, model)
    if not keeps_statistics(model.encoder) or is_frozen(model):
        return
    round_ = _plan(model, inputs, buffer, config, work)

    def see(batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        transforms = sample_vertebra_transforms(batch, config.augment, generator)
        return make_patient_pixels(batch, inputs, transforms, config.augment, generator)

    seen = replay(_examples(buffer, round_, inputs), round_.order, see, work)
    recount_statistics(_Reader(model.encoder), seen)


class _Reader(nn.Module):
    """Encoder that is called with pixels alone."""

    def __init__(self, encoder: PreTrainedModel) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pixels: Tensor) -> Any:
        return run_encoder(self.encoder, pixels)
