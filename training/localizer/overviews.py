"""Training data of a localizer: overviews with masks, their folds, and their augmentation.

Only studies whose mask is stored on the overview's grid are used. Augmentation resamples each cube
once, in mm relative to its centre, as `training.data.inputs` does for slices.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from storage_schemas.arrays import AIR_HU
from storage_schemas.cubes import shrink_cube
from storage_schemas.errors import StoreError, UsageError
from storage_schemas.localizer_card import CLASSES
from storage_schemas.objects import for_each
from storage_schemas.store import StudyStore
from storage_schemas.study_key import StudyKey
from training.localizer.config import CubeAugmentConfig


@dataclass(frozen=True)
class MaskedStudy:
    """A study with a mask on its overview.

    Parameters
    ----------
    study : StudyKey
        Key of the study.
    patient : str
        Patient key.
    scanner : str
        Scanner name, empty where unknown.
    """

    study: StudyKey
    patient: str
    scanner: str


@dataclass(frozen=True)
class Overviews:
    """Overviews of one size, with their classes.

    Parameters
    ----------
    studies : tuple of str
        Keys of the studies.
    hu : ndarray, shape (studies, S, S, S), int16, HU
        Voxels of the overviews.
    classes : ndarray, shape (studies, S, S, S), uint8
        Class of each voxel, an index of `storage_schemas.localizer_card.CLASSES`.
    spacing_mm : ndarray, shape (studies, 3), float32
        Voxel spacing (z, y, x) in mm.
    """

    studies: tuple[str, ...]
    hu: NDArray[np.int16]
    classes: NDArray[np.uint8]
    spacing_mm: NDArray[np.float32]


def read_masked(store: StudyStore) -> tuple[MaskedStudy, ...]:
    """List the studies that have masks, sorted by key.

    Raises
    ------
    StoreError
        ``table-missing`` or ``table-invalid``.
    UsageError
        ``labels-missing`` if no study has a mask.
    """
    table = store.read_table("studies").select(["study", "patient", "scanner", "overview_levels"])
    studies = [
        MaskedStudy(StudyKey(row["study"]), row["patient"], row["scanner"] or "")
        for row in table.to_pylist()
        if row["overview_levels"]
    ]
    if not studies:
        reason = "no study has a mask: run the pipeline with --masks"
        raise UsageError("labels-missing", reason, key=store.url)
    return tuple(sorted(studies, key=lambda study: study.study))


def assign_folds(
    studies: Sequence[MaskedStudy], folds: int, seed: int
) -> tuple[tuple[StudyKey, ...], ...]:
    """Divide the studies into folds by patient, with the scanners spread evenly.

    Raises
    ------
    UsageError
        ``cohort-too-small`` if there are fewer patients than folds.
    """
    scanners = {study.patient: study.scanner for study in sorted(studies, key=lambda s: s.study)}
    patients = np.random.default_rng(seed).permutation(sorted(scanners)).tolist()
    if len(patients) < folds:
        raise UsageError(
            "cohort-too-small", f"{len(patients)} patients with masks for {folds} folds"
        )
    dealt = {
        patient: number % folds
        for number, patient in enumerate(sorted(patients, key=lambda p: scanners[p]))
    }
    return tuple(
        tuple(sorted(study.study for study in studies if dealt[study.patient] == fold))
        for fold in range(folds)
    )


@contextmanager
def open_overviews(
    store: StudyStore,
    studies: Sequence[str],
    size: int,
    folder: Path,
    advance: Callable[[], None] = lambda: None,
) -> Iterator[Overviews]:
    """Read overviews and masks into temporary memory-mapped files.

    The files are removed at the end of the block.

    Parameters
    ----------
    store : StudyStore
        Store to read from.
    studies : sequence of str
        Keys of the studies.
    size : int
        Side of the cubes in voxels, a divisor of the overview's side.
    folder : Path
        Folder for the temporary files; they need three bytes for each voxel.
    advance : callable
        Called without arguments after each study.

    Raises
    ------
    StoreError
        ``array-missing``, ``array-damaged`` or ``array-mismatch``, naming the array.
    """
    with TemporaryDirectory(prefix="overviews-", dir=folder) as place:
        shape = (len(studies), size, size, size)
        hu = np.memmap(Path(place) / "hu", np.int16, "w+", shape=shape)
        classes = np.memmap(Path(place) / "classes", np.uint8, "w+", shape=shape)
        spacing = np.empty((len(studies), 3), np.float32)

        def read(number: int) -> None:
            cube, affine = store.read_overview(studies[number])
            levels = store.read_overview_levels(studies[number])
            if cube.shape != levels.shape or len(set(cube.shape)) > 1 or cube.shape[0] % size:
                what = f"{cube.shape} with levels {levels.shape}: not cubes divisible by {size}"
                raise StoreError("array-mismatch", what, key=studies[number])
            shrunk, larger = shrink_cube(cube, affine, size)
            hu[number] = np.rint(shrunk)  # half the memory; the pipeline does not round
            classes[number] = shrink_classes(level_classes(levels), cube.shape[0] // size)
            spacing[number] = np.linalg.norm(larger[:3, :3], axis=0)

        for_each(read, range(len(studies)), advance)
        yield Overviews(tuple(studies), hu, classes, spacing)


def level_classes(levels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Map level numbers of the store to classes; levels below C7 are one class."""
    return np.minimum(levels, len(CLASSES) - 1)


def shrink_classes(classes: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Reduce each block of voxels to its most frequent class."""
    if factor == 1:
        return classes
    z, y, x = (side // factor for side in classes.shape)
    split = classes.reshape(z, factor, y, factor, x, factor)
    blocks = split.transpose(0, 2, 4, 1, 3, 5).reshape(z, y, x, factor**3)
    counts = np.stack([(blocks == number).sum(axis=-1) for number in range(len(CLASSES))])
    return counts.argmax(axis=0).astype(np.uint8)


def sample_transforms(
    length_mm: Tensor, augment: CubeAugmentConfig, generator: torch.Generator
) -> Tensor:
    """Sample rotation, scale, shift and left-right mirroring for each cube of a batch.

    Parameters
    ----------
    length_mm : Tensor, shape (batch, 3), float32
        Sides (z, y, x) of each cube in mm.
    augment : CubeAugmentConfig
        Largest deviations.
    generator : torch.Generator
        Random generator on the CPU.

    Returns
    -------
    Tensor, shape (batch, 3, 4), float32
        Affine matrices for `functional.affine_grid`, in (x, y, z) order.
    """
    count = len(length_mm)
    uniform = torch.rand(count, 8, generator=generator) * 2 - 1
    matrix = torch.eye(3).repeat(count, 1, 1) * (1 + uniform[:, 3] * augment.scale)[:, None, None]
    for axis in range(3):
        matrix = matrix @ _rotations(axis, uniform[:, axis] * math.radians(augment.rotate_degrees))
    # Left and right can be mirrored: levels are on the midline. Other axes cannot.
    matrix[:, :, 0] *= torch.where(uniform[:, 4] < 0, -1.0, 1.0)[:, None]
    half = length_mm.flip(1) / 2
    shift = uniform[:, 5:] * augment.shift_mm / half
    # Rotate in mm rather than in -1..1 coordinates, because the sides differ in mm.
    return torch.cat([matrix * half[:, None] / half[:, :, None], shift[:, :, None]], dim=2)


def transform_cubes(hu: Tensor, classes: Tensor, transforms: Tensor) -> tuple[Tensor, Tensor]:
    """Resample cubes: HU trilinearly, classes by nearest neighbour, with air outside.

    Parameters
    ----------
    hu : Tensor, shape (batch, 1, S, S, S), float32
        Voxels in HU.
    classes : Tensor, shape (batch, 1, S, S, S), uint8
        Class of each voxel.
    transforms : Tensor, shape (batch, 3, 4)
        Affine matrices from `sample_transforms`.

    Returns
    -------
    hu : Tensor, shape (batch, 1, S, S, S), float32
        Resampled voxels.
    classes : Tensor, shape (batch, 1, S, S, S), int64
        Resampled classes.
    """
    grid = functional.affine_grid(transforms.to(hu.device), list(hu.shape), align_corners=False)
    seen = functional.grid_sample(hu - AIR_HU, grid, align_corners=False) + AIR_HU
    moved = functional.grid_sample(classes.float(), grid, mode="nearest", align_corners=False)
    return seen, moved.long()


def vary_hu(hu: Tensor, augment: CubeAugmentConfig, generator: torch.Generator) -> Tensor:
    """Sample gain, offset and noise for each cube, with a CPU generator."""
    uniform = (torch.rand(3, len(hu), 1, 1, 1, 1, generator=generator) * 2 - 1).to(hu.device)
    # Sampled on the device of the cubes; copying the noise there would be slow.
    local = torch.Generator(hu.device).manual_seed(generator.initial_seed())
    noise = torch.randn(hu.shape, generator=local, device=hu.device)
    gain, offset, size = (
        1 + uniform[0] * augment.gain,
        uniform[1] * augment.offset_hu,
        uniform[2].abs(),
    )
    return hu * gain + offset + noise * size * augment.noise_hu


def _rotations(axis: int, angle: Tensor) -> Tensor:
    """Rotation matrices about one of the axes (x, y, z), shape (batch, 3, 3)."""
    first, second = [i for i in range(3) if i != axis]
    matrix = torch.eye(3).repeat(len(angle), 1, 1)
    matrix[:, first, first] = matrix[:, second, second] = angle.cos()
    matrix[:, first, second], matrix[:, second, first] = -angle.sin(), angle.sin()
    return matrix
