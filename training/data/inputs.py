"""Model inputs from native slices, in batches on the model's device.

Windowing, cropping, resizing and augmentation are one resampling step: each output pixel samples
the native slice at a position in mm relative to the crop's centre. Nothing is resampled twice, and
inputs do not depend on the scanner's pixel spacing. Training and prediction both use `make_pixels`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from storage_schemas.arrays import AIR_HU
from training.config import AugmentConfig, InputConfig
from training.data.crop_buffer import CropBuffer

_OVERSAMPLE = 2
"""Samples of an output pixel along each axis, so that thin fracture lines are not missed."""
_PATCH_SAMPLES = 4
"""Samples along each side of a patch, to measure how much of it a box covers."""

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class SliceIndex:
    """A list of inputs: slices of crops, with their targets.

    Parameters
    ----------
    crop : ndarray, shape (inputs,), int64
        Index of each input's crop in the `CropBuffer`.
    z : ndarray, shape (inputs,), int64
        Slice of the crop that is each input's centre.
    target : ndarray, shape (inputs,), float32
        Training target from 0 to 1, NaN where unknown.
    """

    crop: NDArray[np.int64]
    z: NDArray[np.int64]
    target: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.crop)


@dataclass(frozen=True)
class SliceTransforms:
    """In-plane augmentation transform of each input of a batch.

    Parameters
    ----------
    matrix : Tensor, shape (batch, 2, 2), float32
        Rotation, scale and mirroring, in (x, y) order.
    shift_mm : Tensor, shape (batch, 2), float32
        Shift (x, y) from the crop's centre in mm.
    """

    matrix: Tensor
    shift_mm: Tensor


def index_slices(
    buffer: CropBuffer, crops: Sequence[int], trim_mm: float, weak_target: float = math.nan
) -> SliceIndex:
    """List the inputs of some crops.

    Parameters
    ----------
    buffer : CropBuffer
        Buffer that holds the crops.
    crops : sequence of int
        Indices of the crops in the buffer.
    trim_mm : float
        Length in mm that is dropped at either end of a crop, see `VertebraCrop.slices`.
    weak_target : float
        Soft target for slices without labels, see `VertebraCrop.targets`; NaN leaves them unknown.
    """
    chosen = [np.array(buffer.vertebrae[crop].slices(trim_mm), np.int64) for crop in crops]
    targets = [
        buffer.vertebrae[crop].targets(weak_target)[z]
        for crop, z in zip(crops, chosen, strict=True)
    ]
    return SliceIndex(
        crop=np.repeat(np.array(crops, np.int64), [len(z) for z in chosen]),
        z=np.concatenate([*chosen, np.empty(0, np.int64)]),
        target=np.concatenate([*targets, np.empty(0, np.float32)]),
    )


def order_neighbours(count: int) -> tuple[int, ...]:
    """Return the offsets of `count` neighbouring slices as channels, the middle three first.

    The first three channels then match a three-channel model, and channel 1 is the slice itself.
    """
    outer = range(2, count // 2 + 1)
    return (-1, 0, 1, *(sign * away for away in outer for sign in (-1, 1)))


def gather_slices(
    buffer: CropBuffer,
    crop: NDArray[np.int64],
    z: NDArray[np.int64],
    neighbours: int = 3,
    *,
    mask: bool = False,
) -> Batch:
    """Copy native slices and their neighbours into one batch.

    The end slices of a crop are repeated for neighbours beyond it.

    Parameters
    ----------
    buffer : CropBuffer
        Buffer that holds the crops.
    crop, z : ndarray, shape (batch,), int64
        Crop index and slice index of each input.
    neighbours : int
        Number of neighbouring slices to copy, odd.
    mask : bool
        Whether to add the vertebra's mask.

    Returns
    -------
    dict
        ``hu`` (batch, neighbours, rows, columns), int16, padded with air; ``shape`` (batch, 2),
        rows and columns without padding; ``spacing_mm`` (batch, 2), row and column spacing; ``box``
        (batch, 4), x, y, width and height of the fracture's box in pixels, NaN where there is none;
        with `mask`, ``mask`` (batch, 1, rows, columns), uint8.
    """
    shape = buffer.shapes[crop, 1:]
    around = np.array(order_neighbours(neighbours))
    hu = np.full((len(crop), neighbours, *shape.max(axis=0)), AIR_HU, np.int16)
    inside = np.zeros((len(crop), 1, *hu.shape[2:]) if mask else 0, np.uint8)
    boxes = np.full((len(crop), 4), np.nan, np.float32)
    for row, (index, middle) in enumerate(zip(crop.tolist(), z.tolist(), strict=True)):
        voxels = buffer.crop(index)
        _, height, width = voxels.shape
        hu[row, :, :height, :width] = _neighbours(voxels, middle, around)
        if mask:
            inside[row, 0, :height, :width] = buffer.mask(index)[middle]
        if box := buffer.vertebrae[index].boxes.get(middle):
            boxes[row] = box
    masks = {"mask": torch.from_numpy(inside)} if mask else {}
    return masks | {
        "hu": torch.from_numpy(hu),
        "shape": torch.from_numpy(shape),
        "spacing_mm": torch.from_numpy(buffer.spacings_mm[crop, 1:]),
        "box": torch.from_numpy(boxes),
    }


def _neighbours(
    voxels: NDArray[np.int16], middle: int, around: NDArray[np.int64]
) -> NDArray[np.int16]:
    """Return the slices around one slice; a view where all three lie inside the crop."""
    if len(around) == 3 and 0 < middle < len(voxels) - 1:
        return voxels[middle - 1 : middle + 2]
    return voxels[np.clip(middle + around, 0, len(voxels) - 1)]


def identity_transforms(count: int) -> SliceTransforms:
    """Return transforms that change nothing."""
    return SliceTransforms(torch.eye(2).repeat(count, 1, 1), torch.zeros(count, 2))


def sample_transforms(
    count: int, augment: AugmentConfig, generator: torch.Generator
) -> SliceTransforms:
    """Sample rotation, scale, mirroring and shift for each input, with a CPU generator."""
    uniform = torch.rand(count, 5, generator=generator) * 2 - 1
    angle = uniform[:, 0] * math.radians(augment.rotate_degrees)
    scale = 1 + uniform[:, 1] * augment.scale
    # Mirror left-right only; other flips do not occur in patients.
    mirror = torch.where(uniform[:, 2] < 0, -1.0, 1.0)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    matrix = torch.stack([cos * mirror, -sin, sin * mirror, cos], dim=1).view(count, 2, 2)
    return SliceTransforms(matrix, uniform[:, 3:] * augment.shift_mm)


def make_pixels(batch: Batch, inputs: InputConfig, transforms: SliceTransforms) -> Tensor:
    """Resample native slices to windowed model inputs.

    Parameters
    ----------
    batch : dict
        Batch from `gather_slices`, on the device where pixels are needed.
    inputs : InputConfig
        Size, window and channels of the input.
    transforms : SliceTransforms
        Augmentation transform of each input.

    Returns
    -------
    Tensor, shape (batch, channels, size, size), float32
        HU windowed to 0..1; a mask channel holds the covered fraction of each pixel. Apply
        `normalise` before a model.
    """
    hu = batch["hu"].float()
    if len(inputs.windows) > 1:
        hu = hu[:, order_neighbours(3).index(0), None]
    low, high = torch.tensor(inputs.windows, device=hu.device).view(-1, 2, 1, 1).unbind(1)
    windowed = hu.sub(low).div(high - low).clamp(0, 1)
    if inputs.mask:
        windowed = torch.cat([windowed, batch["mask"].float()], dim=1)
    grid = _look_up(batch, inputs, transforms, inputs.size * _OVERSAMPLE)
    pixels = functional.grid_sample(windowed, grid, align_corners=False)
    # Equals average pooling, in a quarter of the time.
    return functional.interpolate(pixels, scale_factor=1 / _OVERSAMPLE, mode="bilinear")


def vary_intensity(pixels: Tensor, augment: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Sample gain, offset and noise for each input, with a CPU generator."""
    uniform = (torch.rand(len(pixels), 3, 1, 1, 1, generator=generator) * 2 - 1).to(pixels.device)
    gain, offset = 1 + uniform[:, 0] * augment.gain, uniform[:, 1] * augment.offset
    noise = torch.randn(pixels.shape, generator=generator).to(pixels.device)
    return (pixels * gain + offset + noise * uniform[:, 2].abs() * augment.noise).clamp(0, 1)


def normalise(pixels: Tensor, inputs: InputConfig) -> Tensor:
    """Apply ``(pixels - mean) / std`` to each channel of windowed inputs.

    A mask channel is left as it is. The result is in channels-last memory format, which is faster
    for convolutions.
    """
    more, mask = inputs.neighbours - 3, [0.0] * inputs.mask
    mean = [*inputs.mean, *[sum(inputs.mean) / 3] * more, *mask]
    std = [*inputs.std, *[sum(inputs.std) / 3] * more, *(1 + zero for zero in mask)]
    each = [torch.tensor(values, device=pixels.device).view(1, -1, 1, 1) for values in (mean, std)]
    return pixels.sub(each[0]).div(each[1]).contiguous(memory_format=torch.channels_last)


def cover_patches(
    batch: Batch, inputs: InputConfig, transforms: SliceTransforms, patches: int
) -> Tensor:
    """Compute the fraction of each patch that the fracture's box covers.

    Parameters
    ----------
    batch : dict
        Batch from `gather_slices`.
    inputs : InputConfig
        Size and field of view of the input.
    transforms : SliceTransforms
        Transforms that `make_pixels` used for the batch.
    patches : int
        Number of patches along each side of the input.

    Returns
    -------
    Tensor, shape (batch, patches * patches), float32
        Covered fraction from 0 to 1, row by row; 0 where there is no box.
    """
    grid = _look_up(batch, inputs, transforms, patches * _PATCH_SAMPLES)
    rows, columns = batch["hu"].shape[2:]
    half = torch.tensor([columns, rows], device=grid.device) / 2
    # Box corners in -1..1 coordinates of the padded slice; pixel centres lie at half-integers.
    low = (batch["box"][:, :2] / half - 1)[:, None, None]
    high = low + (batch["box"][:, 2:] / half)[:, None, None]
    inside = ((grid >= low) & (grid <= high)).all(dim=-1)
    return functional.avg_pool2d(inside[:, None].float(), _PATCH_SAMPLES).flatten(1)


def _look_up(batch: Batch, inputs: InputConfig, transforms: SliceTransforms, side: int) -> Tensor:
    """Sampling grid of side x side points in the -1..1 coordinates of the padded slice.

    Returns
    -------
    Tensor, shape (batch, side, side, 2), float32
        Coordinates (x, y), for `grid_sample`.
    """
    device = batch["hu"].device
    rows, columns = batch["hu"].shape[2:]
    padded = torch.tensor([columns, rows], device=device)
    real = batch["shape"].flip(1)
    of_mm = 2 / (batch["spacing_mm"].flip(1) * padded)
    matrix = transforms.matrix.to(device) * (inputs.crop_mm / 2) * of_mm[:, :, None]
    # Centre of the unpadded slice; padding shifts it away from 0.
    centre = real / padded - 1 + transforms.shift_mm.to(device) * of_mm
    steps = (torch.arange(side, device=device) * 2 + 1) / side - 1
    across, down = (steps[:, None] * matrix[:, None, :, axis] for axis in (0, 1))
    # A broadcast sum, cheaper than the matrix products of `affine_grid`.
    return across[:, None] + (down + centre[:, None])[:, :, None]
