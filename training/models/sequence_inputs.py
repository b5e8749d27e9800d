"""Which positions of a vertebra are looked at, and whole patients as one batch of pictures.

A vertebra's positions are evenly spaced over the slices that are inputs; one with fewer slices
than positions is looked at slice by slice, and the positions that are left over are masked.
Pictures come from `training.data.inputs`, like those of slice models.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from storage_schemas.vertebrae import CERVICAL
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
"""Below so many slices a vertebra is predicted with a warning."""


@dataclass(frozen=True)
class PatientIndex:
    """Some patients' vertebrae, and the positions in them.

    Parameters
    ----------
    crop : ndarray, shape (patients, 7), int64
        Of the `CropBuffer`; -1 where a level is missing, or is not to be looked at.
    z : ndarray, shape (patients, 7, positions), int64
        Slice of the crop; -1 where there is no position.
    """

    crop: NDArray[np.int64]
    z: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.crop)

    def __getitem__(self, rows: NDArray[np.int64] | slice) -> "PatientIndex":
        return PatientIndex(self.crop[rows], self.z[rows])

    @property
    def valid(self) -> NDArray[np.bool_]:
        """Which positions there are, shape (patients, 7, positions)."""
        return self.z >= 0

    def flat(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Crop and slice of each position that there is, both of shape (slices,)."""
        valid = self.valid
        return np.broadcast_to(self.crop[..., None], valid.shape)[valid], self.z[valid]

    def alone(self) -> "PatientIndex":
        """The same vertebrae, each as a patient of whom nothing else is known."""
        row, level = np.nonzero(self.crop >= 0)
        return PatientIndex.of_single(self.crop[row, level], level, self.z[row, level])

    @classmethod
    def of_single(
        cls, crop: NDArray[np.int64], level: NDArray[np.int64], z: NDArray[np.int64]
    ) -> "PatientIndex":
        """Single vertebrae as patients: their crops and levels, each (vertebrae,), and slices."""
        found = cls(
            np.full((len(crop), len(CERVICAL)), -1),
            np.full((len(crop), len(CERVICAL), z.shape[1]), -1),
        )
        each = np.arange(len(crop))
        found.crop[each, level], found.z[each, level] = crop, z
        return found


def choose_positions(vertebra: VertebraCrop, positions: int, trim_mm: float) -> NDArray[np.int64]:
    """The slices of a vertebra that are looked at, shape (positions,); -1 where there are fewer."""
    slices = vertebra.slices(trim_mm)
    chosen = np.full(positions, -1)
    count = min(positions, len(slices))
    chosen[:count] = np.rint(np.linspace(slices[0], slices[-1], count)).astype(np.int64)
    if count == 1:
        chosen[0] = slices[len(slices) // 2]
    return chosen


def sample_positions(
    vertebra: VertebraCrop, around: int, drawn: int, trim_mm: float, random: np.random.Generator
) -> NDArray[np.int64]:
    """Draw slices of a vertebra to train on, shape (drawn,); -1 where there are fewer.

    One is drawn from each of so many equal parts; the slice `around` is the one of its part.
    """
    slices = np.array(vertebra.slices(trim_mm))
    parts = np.array_split(slices, min(drawn, len(slices)))
    chosen = np.array([random.choice(part) for part in parts])
    chosen[next(n for n, part in enumerate(parts) if around in part)] = around
    found = np.full(drawn, -1)
    found[: len(chosen)] = chosen
    return found


def index_patients(
    buffer: CropBuffer, studies: Sequence[str], positions: int, trim_mm: float
) -> PatientIndex:
    """List the positions of studies; a study without any crop has a row of -1."""
    rows = {study: row for row, study in enumerate(studies)}
    crop = np.full((len(studies), len(CERVICAL)), -1)
    z = np.full((*crop.shape, positions), -1)
    for number, vertebra in enumerate(buffer.vertebrae):
        if vertebra.study in rows:
            place = rows[vertebra.study], CERVICAL.index(vertebra.level)
            crop[place] = number
            z[place] = choose_positions(vertebra, positions, trim_mm)
    return PatientIndex(crop, z)


def gather_patients(buffer: CropBuffer, index: PatientIndex, inputs: InputConfig) -> Batch:
    """Copy the slices of some patients into one batch.

    Returns
    -------
    dict
        As `gather_slices`, of all positions in order, and ``valid`` (patients, 7, positions), bool;
        ``vertebra`` (slices,), int64, which of the batch's vertebrae each slice belongs to.
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
    """Draw one pose for each vertebra of a batch: its slices stay a stack."""
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
    """Pixels for a sequence model, shape (slices, channels, size, size), float32.

    With `augment` and `generator` intensities vary, and some vertebrae lose their mask.
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


def list_warnings(vertebrae: Sequence[VertebraCrop]) -> list[str]:
    """What of a study's crops makes its prediction less sure, one line each."""
    found = {vertebra.level: vertebra.shape[0] for vertebra in vertebrae}
    told = [f"{level} has no crop" for level in CERVICAL if level not in found]
    return told + [
        f"{level} has {slices} slice{'s' * (slices != 1)} only"
        for level, slices in found.items()
        if slices < FEW_SLICES
    ]
