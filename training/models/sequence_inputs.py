"""Inputs of sequence models: the positions of a vertebra, and whole patients as one batch.

Positions are evenly spaced over the input slices of a vertebra. If there are fewer slices than
positions, each slice is used once and the remaining positions are masked. Pixels come from
`training.data.inputs`, as for slice models.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from storage_schemas.targets import Targets
from training.config import AugmentConfig, InputConfig
from training.data.cohort import VertebraCrop
from training.data.crop_buffer import CropBuffer
from training.data.inputs import (
    Batch,
    SliceTransforms,
    gather_slices,
    identity_transforms,
    make_pixels,
    normalise,
    sample_transforms,
    vary_intensity,
)

FEW_SLICES = 5
"""Number of slices below which a vertebra gets a warning."""


@dataclass(frozen=True)
class PatientIndex:
    """Crops and positions of some patients.

    Parameters
    ----------
    crop : ndarray, shape (patients, levels), int64
        Index of each vertebra's crop in the `CropBuffer`; -1 for missing or ignored levels.
    z : ndarray, shape (patients, levels, positions), int64
        Slice of the crop at each position; -1 for masked positions.
    """

    crop: NDArray[np.int64]
    z: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.crop)

    def __getitem__(self, rows: NDArray[np.int64] | slice) -> "PatientIndex":
        return PatientIndex(self.crop[rows], self.z[rows])

    @property
    def valid(self) -> NDArray[np.bool_]:
        """Mask of the positions in use, shape (patients, levels, positions)."""
        return self.z >= 0

    def flat(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Crop and slice of each position in use, both of shape (slices,)."""
        valid = self.valid
        return np.broadcast_to(self.crop[..., None], valid.shape)[valid], self.z[valid]

    def alone(self) -> "PatientIndex":
        """Return the same vertebrae, each as a patient with a single vertebra."""
        row, level = np.nonzero(self.crop >= 0)
        levels = self.crop.shape[1]
        return PatientIndex.of_single(self.crop[row, level], level, self.z[row, level], levels)

    @classmethod
    def of_single(
        cls, crop: NDArray[np.int64], level: NDArray[np.int64], z: NDArray[np.int64], levels: int
    ) -> "PatientIndex":
        """Make an index of single vertebrae.

        Parameters
        ----------
        crop : ndarray, shape (vertebrae,), int64
            Crop of each vertebra.
        level : ndarray, shape (vertebrae,), int64
            Index of each vertebra's level.
        z : ndarray, shape (vertebrae, positions), int64
            Slice at each position.
        levels : int
            Number of levels of a patient.
        """
        found = cls(np.full((len(crop), levels), -1), np.full((len(crop), levels, z.shape[1]), -1))
        each = np.arange(len(crop))
        found.crop[each, level], found.z[each, level] = crop, z
        return found


def choose_positions(vertebra: VertebraCrop, positions: int, trim_mm: float) -> NDArray[np.int64]:
    """Return the evenly spaced slices of a vertebra, shape (positions,), padded with -1."""
    slices = vertebra.slices(trim_mm)
    chosen = np.full(positions, -1)
    count = min(positions, len(slices))
    chosen[:count] = np.rint(np.linspace(slices[0], slices[-1], count)).astype(np.int64)
    if count == 1:
        chosen[0] = slices[len(slices) // 2]
    return chosen


def sample_positions(
    vertebra: VertebraCrop, around: int, count: int, trim_mm: float, random: np.random.Generator
) -> NDArray[np.int64]:
    """Sample slices of a vertebra for training, shape (count,), padded with -1.

    The slices are divided into `count` equal parts with one sample each; the part that contains
    `around` gets `around`.
    """
    slices = np.array(vertebra.slices(trim_mm))
    parts = np.array_split(slices, min(count, len(slices)))
    chosen = np.array([random.choice(part) for part in parts])
    chosen[next(n for n, part in enumerate(parts) if around in part)] = around
    found = np.full(count, -1)
    found[: len(chosen)] = chosen
    return found


def index_patients(
    buffer: CropBuffer, studies: Sequence[str], positions: int, trim_mm: float
) -> PatientIndex:
    """List the positions of studies; studies without crops get a row of -1."""
    rows = {study: row for row, study in enumerate(studies)}
    levels = buffer.targets.levels
    crop = np.full((len(studies), len(levels)), -1)
    z = np.full((*crop.shape, positions), -1)
    for number, vertebra in enumerate(buffer.vertebrae):
        if vertebra.study in rows:
            place = rows[vertebra.study], levels.index(vertebra.level)
            crop[place] = number
            z[place] = choose_positions(vertebra, positions, trim_mm)
    return PatientIndex(crop, z)


def gather_patients(buffer: CropBuffer, index: PatientIndex, inputs: InputConfig) -> Batch:
    """Copy the slices of some patients into one batch.

    Parameters
    ----------
    buffer : CropBuffer
        Buffer that holds the crops.
    index : PatientIndex
        Crops and positions of the patients.
    inputs : InputConfig
        Neighbours and mask channel of the inputs.

    Returns
    -------
    dict
        Batch of `gather_slices` with all positions in order; ``valid`` (patients, levels,
        positions), bool; ``vertebra`` (slices,), int64, index of each slice's vertebra within the
        batch.
    """
    crop, z = index.flat()
    counts = index.valid.sum(axis=2)[index.crop >= 0]
    batch = gather_slices(buffer, crop, z, inputs.neighbours, mask=inputs.mask)
    return batch | {
        "valid": torch.from_numpy(index.valid),
        "vertebra": torch.from_numpy(np.repeat(np.arange(len(counts)), counts)),
    }


def sample_vertebra_transforms(
    batch: Batch, augment: AugmentConfig, generator: torch.Generator
) -> SliceTransforms:
    """Sample one transform for each vertebra of a batch, shared by its slices."""
    of = batch["vertebra"].cpu()
    transforms = sample_transforms(_count(of), augment, generator)
    return SliceTransforms(transforms.matrix[of], transforms.shift_mm[of])


def make_patient_pixels(
    batch: Batch,
    inputs: InputConfig,
    transforms: SliceTransforms | None = None,
    augment: AugmentConfig | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Make the input of a sequence model, shape (slices, channels, size, size), float32.

    With `augment` and `generator`, intensities are augmented and some masks are dropped.
    """
    pixels = make_pixels(batch, inputs, transforms or identity_transforms(len(batch["hu"])))
    if augment is not None and generator is not None:
        slices, masks = pixels[:, : inputs.channels - inputs.mask], pixels[:, -1:]
        pixels = vary_intensity(slices, augment, generator)
        if inputs.mask:
            of = batch["vertebra"].cpu()
            kept = torch.rand(_count(of), generator=generator) >= augment.forget_mask
            masks = masks * kept[of, None, None, None].to(masks.device)
            pixels = torch.cat([pixels, masks], dim=1)
    return normalise(pixels, inputs)


def _count(of: Tensor) -> int:
    return int(of.max()) + 1 if len(of) else 0


def list_warnings(vertebrae: Sequence[VertebraCrop], targets: Targets) -> list[str]:
    """List reasons why the prediction of a study is less reliable, one line each."""
    found = {vertebra.level: vertebra.shape[0] for vertebra in vertebrae}
    missing = [
        f"{level} was not found in the scan: its probability is a prior, not a prediction"
        for level in targets.levels
        if level not in found
    ]
    return missing + [
        f"{level} has only {slices} slice{'s' * (slices != 1)}"
        for level, slices in found.items()
        if slices < FEW_SLICES
    ]
