"""Where the vertebrae lie in a volume: from a given label mask.

A localizer takes the volume and returns, for each level, the voxels that are that vertebra. Not
here: how much around them is kept (`pipeline.cropping`).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.masks import LabelMask, box_around, sample_mask
from storage_schemas.errors import StudyError
from storage_schemas.geometry import Box, StackGeometry
from storage_schemas.vertebrae import MASK_LABELS

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


def locate_by_mask(
    hu: NDArray[np.int16],
    geometry: StackGeometry,
    mask: LabelMask,
    levels: Iterable[str],
    convention: str,
) -> list[LocatedVertebra]:
    """Find vertebrae by a label mask, aligned by its affine.

    Parameters
    ----------
    hu : ndarray, shape (z, y, x), int16, HU
        The canonical volume.
    geometry : StackGeometry
        Its geometry.
    mask : LabelMask
        From `pipeline.masks.read_mask`.
    levels : iterable of str
        The levels wanted.
    convention : str
        From `storage_schemas.vertebrae.MASK_LABELS`.

    Returns
    -------
    list of LocatedVertebra
        Levels that the mask lacks are left out; so are strays, far from their vertebra.

    Raises
    ------
    StudyError
        ``mask-outside-volume`` or ``mask-off-bone``, with the measured figures.
    """
    values = {level: value for value, level in MASK_LABELS[convention].items()}
    extents = _extents(mask.labels, [values[level] for level in levels if level in values])
    located = []
    volume_mm3 = seen_mm3 = 0.0
    for level in levels:
        value = values.get(level, 0)
        if value not in extents:
            continue
        extent = extents[value]
        part = _without_strays(mask.labels[extent] == value, mask.voxel_mm)
        corner = (extent[0].start, extent[1].start, extent[2].start)
        volume_mm3 += np.count_nonzero(part) * mask.voxel_mm3
        box = box_around(mask, extent, geometry)
        if box is None:
            continue
        inside = sample_mask(mask, part, corner, geometry, box)
        tight = _bounds(inside)
        if tight is None:
            continue
        inside = inside[tight]
        seen_mm3 += np.count_nonzero(inside) * float(np.prod(geometry.spacing))
        extent = _shift(tight, box)
        located.append(LocatedVertebra(level, extent, inside, float(hu[extent][inside].mean())))
    if volume_mm3 and seen_mm3 < MIN_SHARE_INSIDE * volume_mm3:
        raise StudyError(
            "mask-outside-volume",
            f"{seen_mm3 / volume_mm3:.0%} of the mask lies in the CT, at least "
            f"{MIN_SHARE_INSIDE:.0%} must",
        )
    _check_bone(located)
    return located


def _extents(labels: NDArray[np.uint8], values: Iterable[int]) -> dict[int, Box]:
    """The box of each label that occurs; most of a mask is background, and is passed over."""
    around = _bounds(labels)
    if around is None:
        return {}
    # Transposed, since what is contiguous is found fastest.
    found = ndimage.find_objects(np.asfortranarray(labels[around]).T)
    boxes = dict(enumerate(found, start=1))
    return {
        value: _shift((box[2], box[1], box[0]), around)
        for value in values
        if (box := boxes.get(value))
    }


def _bounds(inside: NDArray[np.uint8] | NDArray[np.bool_]) -> Box | None:
    """The smallest box that holds all that is not 0; None where nothing is."""
    flat = inside.view(np.uint8)
    third = _span(flat.max(axis=(0, 1)))
    if third is None:
        return None
    plane = flat[..., third].max(axis=2)
    first, second = _span(plane.max(axis=1)), _span(plane.max(axis=0))
    return (first, second, third) if first and second else None


def _span(occupied: NDArray[np.uint8]) -> slice | None:
    at = np.flatnonzero(occupied)
    return slice(int(at[0]), int(at[-1]) + 1) if at.size else None


def _check_bone(located: list[LocatedVertebra]) -> None:
    if not located:
        return
    voxels = [np.count_nonzero(found.inside) for found in located]
    mean = float(np.average([found.mean_hu for found in located], weights=voxels))
    if mean < BONE_HU:
        raise StudyError(
            "mask-off-bone", f"mean HU inside the mask is {mean:.0f}, bone is over {BONE_HU:.0f}"
        )


def _without_strays(part: NDArray[np.bool_], voxel_mm: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Leave out specks that lie far from the vertebra: they occur in masks that people edited.

    A vertebra that the scan cuts may well be in several pieces, so pieces of some size stay, and so
    do specks near them. What lies far from all of these leaves a gap along one axis at least.
    """
    occupied = part.view(np.uint8)
    if all(occupied.max(axis=others).all() for others in ((0, 1), (0, 2), (1, 2))):
        return part
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
