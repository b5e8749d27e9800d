"""Three neighbouring native slices in, one square input out, batched, on the model's device.

Window, crop, resize and augmentation are one pass: every output pixel looks up its place in the
native slice, in mm from the crop's centre, so nothing is resampled twice and the spacing of the
scanner is gone. Training and prediction both come through `make_pixels`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from storage_schemas.crops import AIR_HU
from training.config import AugmentConfig, InputConfig
from training.shards import RoundShards

CHANNELS = (-1, 0, 1)
"""The neighbours of a slice that are its channels; beyond the crop, its last slice again."""

_OVERSAMPLE = 2
"""Looks an output pixel takes along each axis, so that thin lines do not fall between two."""


@dataclass(frozen=True)
class SliceIndex:
    """The inputs of some crops.

    Parameters
    ----------
    crop, z : ndarray, shape (inputs,), int64
        Which crop of the `RoundShards`, and which of its slices.
    target : ndarray, shape (inputs,), float32
        0 to 1, NaN where unknown.
    """

    crop: NDArray[np.int64]
    z: NDArray[np.int64]
    target: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.crop)


def index_slices(
    shards: RoundShards, crops: Sequence[int], trim_mm: float, weak_target: float = math.nan
) -> SliceIndex:
    """List the inputs of some crops: see `Vertebra.slices` and `Vertebra.targets`."""
    chosen = [np.array(shards.vertebrae[crop].slices(trim_mm), np.int64) for crop in crops]
    targets = [
        shards.vertebrae[crop].targets(weak_target)[z]
        for crop, z in zip(crops, chosen, strict=True)
    ]
    return SliceIndex(
        crop=np.repeat(np.array(crops, np.int64), [len(z) for z in chosen]),
        z=np.concatenate([*chosen, np.empty(0, np.int64)]),
        target=np.concatenate([*targets, np.empty(0, np.float32)]),
    )


def gather_slices(
    shards: RoundShards, crop: NDArray[np.int64], z: NDArray[np.int64]
) -> dict[str, Tensor]:
    """Copy native slices and their neighbours into one batch.

    Returns
    -------
    dict
        ``hu`` (batch, 3, rows, columns), int16, filled up with air; ``shape`` (batch, 2), the rows
        and columns that are real; ``spacing_mm`` (batch, 2), of rows and columns.
    """
    crops = [shards.crop(index) for index in crop]
    shape = np.array([voxels.shape[1:] for voxels in crops])
    spacing = np.array([shards.vertebrae[index].spacing_mm[1:] for index in crop], np.float32)
    hu = np.full((len(crops), len(CHANNELS), *shape.max(axis=0)), AIR_HU, np.int16)
    for row, (voxels, middle) in enumerate(zip(crops, z, strict=True)):
        near = np.clip(middle + np.array(CHANNELS), 0, len(voxels) - 1)
        hu[row, :, : voxels.shape[1], : voxels.shape[2]] = voxels[near]
    return {
        "hu": torch.from_numpy(hu),
        "shape": torch.from_numpy(shape),
        "spacing_mm": torch.from_numpy(spacing),
    }


def make_pixels(
    batch: dict[str, Tensor],
    inputs: InputConfig,
    augment: AugmentConfig | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Turn native slices into a model's input.

    Parameters
    ----------
    batch : dict
        From `gather_slices`, on the device where the pixels shall be.
    inputs : InputConfig
    augment : AugmentConfig or None
        None makes the plain input.
    generator : torch.Generator or None
        Of the augmentation, on the CPU, so that draws are the same on every device.

    Returns
    -------
    Tensor, shape (batch, 3, size, size), float32
        Windowed to 0..1, then normalised by ``mean`` and ``std``.
    """
    device = batch["hu"].device
    windowed = (
        batch["hu"].float().sub(inputs.low_hu).div(inputs.high_hu - inputs.low_hu).clamp(0, 1)
    )
    count = len(windowed)
    way, shift = _pose(count, augment, generator)
    theta = _to_source(batch, way.to(device), shift.to(device), inputs.crop_mm)
    side = inputs.size * _OVERSAMPLE
    grid = functional.affine_grid(theta, [count, 1, side, side], align_corners=False)
    pixels = functional.grid_sample(windowed, grid, align_corners=False)
    pixels = functional.avg_pool2d(pixels, _OVERSAMPLE)
    if augment:
        pixels = _vary_intensity(pixels, augment, generator)
    mean, std = (
        torch.tensor(v, device=device).view(1, -1, 1, 1) for v in (inputs.mean, inputs.std)
    )
    return pixels.sub(mean).div(std)


def _pose(
    count: int, augment: AugmentConfig | None, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Rotation, scale and mirror of each input, (count, 2, 2), and its shift in mm, (x, y)."""
    if augment is None:
        return torch.eye(2).repeat(count, 1, 1), torch.zeros(count, 2)
    draws = torch.rand(count, 5, generator=generator) * 2 - 1
    angle = draws[:, 0] * math.radians(augment.rotate_degrees)
    scale = 1 + draws[:, 1] * augment.scale
    # Left and right only: a neck upside down or back to front does not occur.
    mirror = torch.where(draws[:, 2] < 0, -1.0, 1.0)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    way = torch.stack([cos * mirror, -sin, sin * mirror, cos], dim=1).view(count, 2, 2)
    return way, draws[:, 3:] * augment.shift_mm


def _to_source(batch: dict[str, Tensor], way: Tensor, shift: Tensor, crop_mm: float) -> Tensor:
    """Matrices (batch, 2, 3) from an input's -1..1 to the -1..1 of its padded native slice."""
    rows, columns = batch["hu"].shape[2:]
    padded = torch.tensor([columns, rows], device=way.device)
    real = batch["shape"].flip(1)
    pixels_of_mm = 2 / (batch["spacing_mm"].flip(1) * padded)
    matrix = way * (crop_mm / 2) * pixels_of_mm[:, :, None]
    # The centre of the real part, which the padding moved away from 0.
    centre = real / padded - 1 + shift * pixels_of_mm
    return torch.cat([matrix, centre[:, :, None]], dim=2).float()


def _vary_intensity(
    pixels: Tensor, augment: AugmentConfig, generator: torch.Generator | None
) -> Tensor:
    draws = (torch.rand(len(pixels), 3, 1, 1, 1, generator=generator) * 2 - 1).to(pixels.device)
    gain, offset = 1 + draws[:, 0] * augment.gain, draws[:, 1] * augment.offset
    noise = torch.randn(pixels.shape, generator=generator).to(pixels.device)
    return (pixels * gain + offset + noise * draws[:, 2].abs() * augment.noise).clamp(0, 1)
