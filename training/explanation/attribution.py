"""The weight of each slice in a prediction, and heat maps of the key slices.

A sequence model computes the weights of a vertebra's positions. For a slice model, the slices that
determine the vertebra's score have equal weights, and all others have none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from training.config import InputConfig
from training.data.crop_buffer import CropBuffer
from training.data.inputs import (
    gather_slices,
    identity_transforms,
    index_slices,
    make_pixels,
    normalise,
)
from training.devices import device, to_device
from training.explanation.heatmaps import explain
from training.models.sequence_inputs import PatientIndex, gather_patients
from training.models.sequence_model import CervicalSequenceModel
from training.models.sequence_scoring import run_sequence_model
from training.models.slice_scoring import TOP, slice_logits

KEYS = 3
"""Number of key slices of a vertebra."""


@dataclass(frozen=True)
class KeySlice:
    """A slice with a large weight.

    Parameters
    ----------
    z : int
        Index of the slice in the crop.
    picture : ndarray, shape (size, size), uint8
        Model input of the slice.
    heat : ndarray, shape (size, size), float32
        Heat map from 0 to 1, scaled by the maximum over the vertebra's key slices.
    """

    z: int
    picture: NDArray[np.uint8]
    heat: NDArray[np.float32]


@dataclass(frozen=True)
class LevelAttribution:
    """The slice weights of one vertebra.

    Parameters
    ----------
    level : str
        Name of the vertebra.
    slices : tuple of int
        Indices of the input slices in the crop.
    weights : tuple of float
        Weight of each slice; the sum is 1.
    logits : tuple of float
        Fracture logit of each slice.
    keys : tuple of KeySlice
        Slices with the largest weights, in the order of the crop.
    """

    level: str
    slices: tuple[int, ...]
    weights: tuple[float, ...]
    logits: tuple[float, ...]
    keys: tuple[KeySlice, ...]


def attribute_study(
    model: PreTrainedModel,
    inputs: InputConfig,
    buffer: CropBuffer,
    study: str,
    levels: Sequence[str] | None = None,
) -> tuple[LevelAttribution, ...]:
    """Compute the slice weights and heat maps of a study, C1 first.

    Parameters
    ----------
    model : PreTrainedModel
        Model of any kind.
    inputs : InputConfig
        Input settings of the model.
    buffer : CropBuffer
        Buffer that holds the study's crops.
    study : str
        Key of the study.
    levels : sequence of str, optional
        Levels to explain, all by default; those without a crop are skipped.

    Returns
    -------
    tuple of LevelAttribution
        One entry for each level that has a crop.
    """
    levels = buffer.targets.levels if levels is None else levels
    model.to(device())
    if isinstance(model, CervicalSequenceModel):
        return _attribute_sequence(model, inputs, buffer, study, levels)
    return _attribute_slices(model, inputs, buffer, study, levels)


def _attribute_slices(
    model: PreTrainedModel,
    inputs: InputConfig,
    buffer: CropBuffer,
    study: str,
    levels: Sequence[str],
) -> tuple[LevelAttribution, ...]:
    found = []
    for crop, vertebra in enumerate(buffer.vertebrae):
        if vertebra.study != study or vertebra.level not in levels:
            continue
        index = index_slices(buffer, [crop], inputs.trim_mm)
        logits = slice_logits(model, inputs, buffer, index)
        weights = np.zeros(len(logits))
        weights[np.argsort(logits)[-TOP:]] = 1 / min(TOP, len(logits))
        # Equal weights: the slices with the largest logits are the key slices.
        keys = np.sort(np.argsort(logits)[-KEYS:])
        batch = to_device(gather_slices(buffer, index.crop[keys], index.z[keys]))
        pixels = make_pixels(batch, inputs, identity_transforms(len(keys)))
        heat = explain(model, normalise(pixels, inputs))
        found.append(
            LevelAttribution(
                vertebra.level,
                tuple(index.z.tolist()),
                tuple(weights.tolist()),
                tuple(logits.tolist()),
                _key_slices(index.z[keys], pixels, heat),
            )
        )
    return tuple(sorted(found, key=lambda one: buffer.targets.levels.index(one.level)))


def _attribute_sequence(
    model: CervicalSequenceModel,
    inputs: InputConfig,
    buffer: CropBuffer,
    study: str,
    levels: Sequence[str],
) -> tuple[LevelAttribution, ...]:
    index, output = run_sequence_model(model, inputs, buffer, [study])
    weights, logits = (
        cast(Tensor, part)[0].numpy() for part in (output.weights, output.position_logits)
    )
    found = []
    for level in np.flatnonzero(index.crop[0] >= 0):
        if buffer.targets.levels[level] not in levels:
            continue
        valid = index.valid[0, level]
        z = index.z[0, level][valid]
        keys = np.sort(np.argsort(weights[level][valid])[-KEYS:])
        alone = PatientIndex(np.full_like(index.crop, -1), np.full_like(index.z, -1))
        alone.crop[0, level], alone.z[0, level] = index.crop[0, level], index.z[0, level]
        batch = to_device(gather_patients(buffer, alone, inputs))
        pixels = make_pixels(batch, inputs, identity_transforms(len(z)))
        heat = explain(model, normalise(pixels, inputs), batch["valid"])
        found.append(
            LevelAttribution(
                buffer.targets.levels[level],
                tuple(z.tolist()),
                tuple(weights[level][valid].tolist()),
                tuple(logits[level][valid].tolist()),
                _key_slices(z[keys], pixels[keys], heat[keys]),
            )
        )
    return tuple(found)


def _key_slices(z: NDArray[np.int64], pixels: Tensor, heat: Tensor) -> tuple[KeySlice, ...]:
    pictures = torch.round(255 * pixels[:, 1]).byte().cpu().numpy()
    heat = heat / heat.max().clamp(min=torch.finfo(heat.dtype).tiny)
    return tuple(
        KeySlice(int(place), picture, heat_map)
        for place, picture, heat_map in zip(z, pictures, heat.cpu().numpy(), strict=True)
    )
