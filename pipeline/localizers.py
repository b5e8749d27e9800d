"""Where the vertebrae lie in a volume: from a label mask, whoever drew it.

A mask is split into its levels, and these are carried onto a grid by position: the volume's, or the
overview's. Not here: how much around them is kept (`pipeline.cropping`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.masks import LabelMask, box_around, sample_mask
from storage_schemas.errors import StudyError
from storage_schemas.geometry import Box, StackGeometry
from storage_schemas.vertebrae import LEVEL_NUMBERS, MASK_LABELS

BONE_HU = 100.0
"""Mean HU below which a mask does not lie on vertebrae: trabecular bone of the aged is about 100,
the cortex far above, muscle 50 (Hounsfield values as in the phantom's sources)."""
STRAY_SHARE = 0.01
"""Of a vertebra's largest piece; smaller pieces are strays where they lie far from it."""
STRAY_MM = 8.0
"""How far."""
MIN_SHARE_INSIDE = 0.5
"""Of a mask's volume, the share that must lie in the CT."""


@dataclass(frozen=True)
class LocatedVertebra:
    """One vertebra in a volume.

    Parameters
    ----------
    level : str
        From `storage_schemas.vertebrae.LEVELS`.
    extent : Box
        The least box of the volume that holds it.
    inside : ndarray, shape of the extent, bool
        Its voxels.
    mean_hu : float
        Over its voxels.
    score : float or None
        The localizer's confidence; None for a given mask.
    """

    level: str
    extent: Box
    inside: NDArray[np.bool_]
    mean_hu: float
    score: float | None = None


@dataclass(frozen=True)
class Localization:
    """What a localizer made of a study.

    Parameters
    ----------
    localizer : str
        Which one, with its convention or version; empty where none could look.
    vertebrae : tuple of LocatedVertebra
        Those found, of the levels asked for.
    missing : mapping of str to (str, str)
        For each other level that was asked for its outcome, and why.
    overview_levels : ndarray, shape of the overview, uint8, or None
        A given mask on the overview's grid, as `draw_levels` makes it.
    """

    localizer: str
    vertebrae: tuple[LocatedVertebra, ...]
    missing: Mapping[str, tuple[str, str]]
    overview_levels: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class MaskPart:
    """One vertebra in a mask.

    Parameters
    ----------
    level : str
        From `storage_schemas.vertebrae.LEVELS`.
    extent : Box
        A box of the mask that holds it, (i, j, k).
    inside : ndarray, shape of the extent, bool
        Its voxels.
    """

    level: str
    extent: Box
    inside: NDArray[np.bool_]


def split_mask(mask: LabelMask, convention: str) -> list[MaskPart]:
    """Split a mask into its vertebrae, strays far from them left out.

    Parameters
    ----------
    mask : LabelMask
        From `pipeline.masks.read_mask`.
    convention : str
        From `storage_schemas.vertebrae.MASK_LABELS`; values that it gives no level count as
        background.

    Returns
    -------
    list of MaskPart
        In the order of the convention.
    """
    extents = _extents(mask.labels)
    return [
        MaskPart(level, extent, _without_strays(mask.labels[extent] == value, mask.voxel_mm))
        for value, level in MASK_LABELS[convention].items()
        if (extent := extents.get(value))
    ]


def locate_by_mask(
    hu: NDArray[np.int16],
    geometry: StackGeometry,
    mask: LabelMask,
    parts: Iterable[MaskPart],
) -> list[LocatedVertebra]:
    """Find the vertebrae of a mask in a volume, aligned by the mask's affine.

    Parameters
    ----------
    hu : ndarray, shape (z, y, x), int16, HU
        The canonical volume.
    geometry : StackGeometry
        Its geometry.
    mask : LabelMask
        Gives the affine.
    parts : iterable of MaskPart
        From `split_mask`: those wanted.

    Returns
    -------
    list of LocatedVertebra
        Those of which anything lies in the volume.

    Raises
    ------
    StudyError
        ``mask-outside-volume`` or ``mask-off-bone``, with the measured figures.
    """
    located = []
    volume_mm3 = seen_mm3 = 0.0
    for part in parts:
        volume_mm3 += int(part.inside.sum()) * mask.voxel_mm3
        carried = _carry(mask, part, geometry)
        if carried is None:
            continue
        extent, inside = carried
        seen_mm3 += int(inside.sum()) * float(np.prod(geometry.spacing))
        mean_hu = float(hu[extent][inside].mean())
        located.append(LocatedVertebra(part.level, extent, inside, mean_hu))
    if volume_mm3 and seen_mm3 < MIN_SHARE_INSIDE * volume_mm3:
        raise StudyError(
            "mask-outside-volume",
            f"{seen_mm3 / volume_mm3:.0%} of the mask lies in the CT, at least "
            f"{MIN_SHARE_INSIDE:.0%} must",
        )
    _check_bone(located)
    return located


def draw_levels(
    mask: LabelMask, parts: Iterable[MaskPart], geometry: StackGeometry
) -> NDArray[np.uint8]:
    """Draw the vertebrae of a mask on another grid, by nearest neighbour.

    Parameters
    ----------
    mask : LabelMask
        Gives the affine.
    parts : iterable of MaskPart
        From `split_mask`.
    geometry : StackGeometry
        Of the grid.

    Returns
    -------
    ndarray, shape (z, y, x), uint8
        `storage_schemas.vertebrae.LEVEL_NUMBERS`, 0 elsewhere.
    """
    levels = np.zeros(geometry.shape, np.uint8)
    for part in parts:
        if carried := _carry(mask, part, geometry):
            extent, inside = carried
            levels[extent][inside] = LEVEL_NUMBERS[part.level]
    return levels


def _carry(
    mask: LabelMask, part: MaskPart, geometry: StackGeometry
) -> tuple[Box, NDArray[np.bool_]] | None:
    """A part of a mask on another grid: its least box there, and its voxels; None beyond it."""
    box = box_around(mask, part.extent, geometry)
    if box is None:
        return None
    i, j, k = part.extent
    inside = sample_mask(mask, part.inside, (i.start, j.start, k.start), geometry, box)
    tight = _bounds(inside)
    return (_shift(tight, box), inside[tight]) if tight else None


def _extents(labels: NDArray[np.uint8]) -> dict[int, Box]:
    """The box of each label that occurs; most of a mask is background, and is passed over."""
    around = _bounds(labels)
    if around is None:
        return {}
    # Masks run along i in memory, and a search along k would jump at every voxel.
    found = ndimage.find_objects(np.asfortranarray(labels[around]).T)
    return {
        value: _shift((box[2], box[1], box[0]), around)
        for value, box in enumerate(found, start=1)
        if box
    }


def _bounds(inside: NDArray[np.uint8] | NDArray[np.bool_]) -> Box | None:
    """The smallest box that holds all that is not 0; None where nothing is."""
    flat = inside.view(np.uint8)
    x, y, z = (np.flatnonzero(flat.max(axis=others)) for others in ((1, 2), (0, 2), (0, 1)))
    if not x.size:
        return None
    first, second, third = (slice(int(at[0]), int(at[-1]) + 1) for at in (x, y, z))
    return first, second, third


def _check_bone(located: list[LocatedVertebra]) -> None:
    if not located:
        return
    voxels = [int(found.inside.sum()) for found in located]
    mean = float(np.average([found.mean_hu for found in located], weights=voxels))
    if mean < BONE_HU:
        raise StudyError(
            "mask-off-bone", f"mean HU inside the mask is {mean:.0f}, bone is over {BONE_HU:.0f}"
        )


def _without_strays(part: NDArray[np.bool_], voxel_mm: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Leave out specks that lie far from the vertebra: they occur in masks that people edited.

    A vertebra that the scan cuts may well be in several pieces, so pieces of some size stay, and so
    do specks near them.
    """
    pieces, count = ndimage.label(part, np.ones((3, 3, 3)))
    if count < 2:
        return part
    sizes = np.bincount(pieces.ravel())[1:]
    large = sizes >= STRAY_SHARE * sizes.max()
    extents = ndimage.find_objects(pieces)
    bounds = np.array([[(side.start, side.stop) for side in extent] for extent in extents])
    reach = STRAY_MM / voxel_mm
    low = bounds[large, :, 0].min(0) - reach
    high = bounds[large, :, 1].max(0) + reach
    near = ((bounds[:, :, 0] < high) & (bounds[:, :, 1] > low)).all(1)
    return np.isin(pieces, 1 + np.flatnonzero(large | near))


def _shift(inner: Box, outer: Box) -> Box:
    """A box inside another, in the coordinates that the outer one is given in."""
    z, y, x = (
        slice(a.start + b.start, a.stop + b.start) for a, b in zip(inner, outer, strict=True)
    )
    return z, y, x
