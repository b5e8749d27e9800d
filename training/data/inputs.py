"""Native slices in, one square input out, batched, on the model's device.

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
from training.data.crop_buffer import CropBuffer

_OVERSAMPLE = 2
"""Looks an output pixel takes along each axis, so that thin lines do not fall between two."""
_PATCH_LOOKS = 4
"""Looks along each side of a patch, to see how much of it a box covers."""

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class SliceIndex:
    """The inputs of some crops.

    Parameters
    ----------
    crop, z : ndarray, shape (inputs,), int64
        Which crop of the `CropBuffer`, and which of its slices.
    target : ndarray, shape (inputs,), float32
        0 to 1, NaN where unknown.
    """

    crop: NDArray[np.int64]
    z: NDArray[np.int64]
    target: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.crop)


@dataclass(frozen=True)
class SliceTransforms:
    """How each input of a batch looks at its slice.

    Parameters
    ----------
    matrix : Tensor, shape (batch, 2, 2), float32
        Rotation, scale and mirror, of (x, y).
    shift_mm : Tensor, shape (batch, 2), float32
        From the crop's centre, (x, y).
    """

    matrix: Tensor
    shift_mm: Tensor


def index_slices(
    buffer: CropBuffer, crops: Sequence[int], trim_mm: float, weak_target: float = math.nan
) -> SliceIndex:
    """List the inputs of some crops: see `Vertebra.slices` and `Vertebra.targets`."""
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
    """The neighbours of a slice that are its channels, the three middle ones first.

    So the first three channels are those of any model of three, and channel 1 is the slice.
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
    """Copy native slices and their neighbours into one batch; beyond a crop, its last slice again.

    Returns
    -------
    dict
        ``hu`` (batch, neighbours, rows, columns), int16, filled up with air; ``shape`` (batch, 2),
        the rows and columns that are real; ``spacing_mm`` (batch, 2), of rows and columns; ``box``
        (batch, 4), x, y, width and height of the fracture in pixels, NaN where none was drawn;
        where `mask` asks for it, ``mask`` (batch, 1, rows, columns), uint8.
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
    """The slices around one, its last again beyond the crop; three that lie inside are a view."""
    if len(around) == 3 and 0 < middle < len(voxels) - 1:
        return voxels[middle - 1 : middle + 2]
    return voxels[np.clip(middle + around, 0, len(voxels) - 1)]


def identity_transforms(count: int) -> SliceTransforms:
    """Look straight at the centre."""
    return SliceTransforms(torch.eye(2).repeat(count, 1, 1), torch.zeros(count, 2))


def sample_transforms(
    count: int, augment: AugmentConfig, generator: torch.Generator
) -> SliceTransforms:
    """Draw rotation, scale, mirror and shift of each input; the generator is on the CPU."""
    uniform = torch.rand(count, 5, generator=generator) * 2 - 1
    angle = uniform[:, 0] * math.radians(augment.rotate_degrees)
    scale = 1 + uniform[:, 1] * augment.scale
    # Left and right only: a neck upside down or back to front does not occur.
    mirror = torch.where(uniform[:, 2] < 0, -1.0, 1.0)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    matrix = torch.stack([cos * mirror, -sin, sin * mirror, cos], dim=1).view(count, 2, 2)
    return SliceTransforms(matrix, uniform[:, 3:] * augment.shift_mm)


def make_pixels(batch: Batch, inputs: InputConfig, transforms: SliceTransforms) -> Tensor:
    """Turn native slices into pictures.

    Parameters
    ----------
    batch : dict
        From `gather_slices`, on the device where the pixels shall be.
    inputs : InputConfig
    transforms : Pose

    Returns
    -------
    Tensor, shape (batch, channels, size, size), float32
        Windowed to 0..1, and the share of each pixel that the mask covers where it is a channel; a
        model wants them through `normalise`.
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
    # Halfway between two pixels is their mean; pooling says the same in four times the time.
    return functional.interpolate(pixels, scale_factor=1 / _OVERSAMPLE, mode="bilinear")


def vary_intensity(pixels: Tensor, augment: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Draw gain, offset and noise of each picture; the generator is on the CPU."""
    uniform = (torch.rand(len(pixels), 3, 1, 1, 1, generator=generator) * 2 - 1).to(pixels.device)
    gain, offset = 1 + uniform[:, 0] * augment.gain, uniform[:, 1] * augment.offset
    noise = torch.randn(pixels.shape, generator=generator).to(pixels.device)
    return (pixels * gain + offset + noise * uniform[:, 2].abs() * augment.noise).clamp(0, 1)


def normalise(pixels: Tensor, inputs: InputConfig) -> Tensor:
    """Pictures of 0..1 to what the model wants: ``(pixels - mean) / std`` of each channel.

    A mask stays as it is. The channels of a pixel lie side by side in memory, which convolutions
    are faster with.
    """
    more, mask = inputs.neighbours - 3, [0.0] * inputs.mask
    mean = [*inputs.mean, *[sum(inputs.mean) / 3] * more, *mask]
    std = [*inputs.std, *[sum(inputs.std) / 3] * more, *(1 + zero for zero in mask)]
    each = [torch.tensor(values, device=pixels.device).view(1, -1, 1, 1) for values in (mean, std)]
    return pixels.sub(each[0]).div(each[1]).contiguous(memory_format=torch.channels_last)


def cover_patches(
    batch: Batch, inputs: InputConfig, transforms: SliceTransforms, patches: int
) -> Tensor:
    """How much of each patch of an input lies in the box of its fracture.

    Parameters
    ----------
    batch, inputs, transforms
        As for `make_pixels`.
    patches : int
        Along each side of the input.

    Returns
    -------
    Tensor, shape (batch, patches * patches), float32
        0 to 1, row by row; 0 where no box was drawn.
    """
    grid = _look_up(batch, inputs, transforms, patches * _PATCH_LOOKS)
    rows, columns = batch["hu"].shape[2:]
    half = torch.tensor([columns, rows], device=grid.device) / 2
    # Corners of the box in the -1..1 of the padded slice; a pixel reaches half a pixel around.
    low = (batch["box"][:, :2] / half - 1)[:, None, None]
    high = low + (batch["box"][:, 2:] / half)[:, None, None]
    inside = ((grid >= low) & (grid <= high)).all(dim=-1)
    return functional.avg_pool2d(inside[:, None].float(), _PATCH_LOOKS).flatten(1)


def _look_up(batch: Batch, inputs: InputConfig, transforms: SliceTransforms, side: int) -> Tensor:
    """Where each of side x side places of an input lies in the -1..1 of its padded native slice.

    Shape (batch, side, side, 2), float32, (x, y).
    """
    device = batch["hu"].device
    rows, columns = batch["hu"].shape[2:]
    padded = torch.tensor([columns, rows], device=device)
    real = batch["shape"].flip(1)
    of_mm = 2 / (batch["spacing_mm"].flip(1) * padded)
    matrix = transforms.matrix.to(device) * (inputs.crop_mm / 2) * of_mm[:, :, None]
    # The centre of the real part, which the padding moved away from 0.
    centre = real / padded - 1 + transforms.shift_mm.to(device) * of_mm
    steps = (torch.arange(side, device=device) * 2 + 1) / side - 1
    across, down = (steps[:, None] * matrix[:, None, :, axis] for axis in (0, 1))
    # One sum that broadcasts, where `affine_grid` multiplies matrices.
    return across[:, None] + (down + centre[:, None])[:, :, None]
