"""Split a label mask into vertebrae, and resample them on other grids.

Resampling uses positions in mm, so grids may be finer, coarser, rotated or sheared. Not here:
whether a mask matches its CT (`pipeline.vertebrae.locate`).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.vertebrae.nifti import LabelMask, box_around, sample_mask
from storage_schemas.geometry import Box, StackGeometry
from storage_schemas.vertebrae import LEVEL_NUMBERS, MASK_LABELS

STRAY_SHARE = 0.01
"""Size limit of strays, as a fraction of the largest component of the vertebra."""
STRAY_MM = 8.0
"""Minimum distance of strays from the large components of the vertebra, in mm."""


@dataclass(frozen=True)
class MaskPart:
    """One vertebra in a mask.

    Parameters
    ----------
    level : str
        Level, one of `storage_schemas.vertebrae.LEVELS`.
    extent : Box
        Box of the mask that contains the vertebra, (i, j, k).
    inside : ndarray, shape of the extent, bool
        True for the voxels of the vertebra.
    """

    level: str
    extent: Box
    inside: NDArray[np.bool_]


def split_mask(mask: LabelMask, convention: str) -> list[MaskPart]:
    """Split a mask into its vertebrae, without strays.

    Parameters
    ----------
    mask : LabelMask
        Mask from `pipeline.vertebrae.nifti.read_mask`.
    convention : str
        Key of `storage_schemas.vertebrae.MASK_LABELS`; values without a level are background.

    Returns
    -------
    list of MaskPart
        Vertebrae of the mask, in the order of the convention.
    """
    extents = _extents(mask.labels)
    return [
        MaskPart(level, extent, _without_strays(mask.labels[extent] == value, mask.voxel_mm))
        for value, level in MASK_LABELS[convention].items()
        if (extent := extents.get(value))
    ]


def resample_levels(
    mask: LabelMask, parts: Iterable[MaskPart], geometry: StackGeometry
) -> NDArray[np.uint8]:
    """Resample the vertebrae of a mask on another grid with nearest neighbour.

    Parameters
    ----------
    mask : LabelMask
        Mask that the vertebrae come from.
    parts : iterable of MaskPart
        Vertebrae from `split_mask`.
    geometry : StackGeometry
        Geometry of the other grid.

    Returns
    -------
    ndarray, shape (z, y, x), uint8
        Values of `storage_schemas.vertebrae.LEVEL_NUMBERS`, and 0 for background.
    """
    levels = np.zeros(geometry.shape, np.uint8)
    for part in parts:
        if resampled := resample_part(mask.index_from_lps, part, geometry):
            extent, inside = resampled
            levels[extent][inside] = LEVEL_NUMBERS[part.level]
    return levels


def resample_part(
    index_from_lps: NDArray[np.float64], part: MaskPart, geometry: StackGeometry
) -> tuple[Box, NDArray[np.bool_]] | None:
    """Resample one vertebra of a mask on another grid with nearest neighbour.

    Parameters
    ----------
    index_from_lps : ndarray, shape (4, 4), float64
        Matrix from LPS mm to indices of the mask, as in `LabelMask`.
    part : MaskPart
        Vertebra in the mask.
    geometry : StackGeometry
        Geometry of the other grid.

    Returns
    -------
    (Box, ndarray) or None
        Bounding box in the grid, and an array of its shape, bool, that is True for the voxels of
        the vertebra. None where no voxel of the grid is inside the vertebra.
    """
    box = box_around(index_from_lps, part.extent, geometry)
    if box is None:
        return None
    i, j, k = part.extent
    inside = sample_mask(index_from_lps, part.inside, (i.start, j.start, k.start), geometry, box)
    tight = bounds_of(inside)
    return (_shift(tight, box), inside[tight]) if tight else None


def _extents(labels: NDArray[np.uint8]) -> dict[int, Box]:
    """Bounding box of each label, from the runs of equal labels along i."""
    around = bounds_of(labels)
    if around is None:
        return {}
    rows = labels[around].T  # i is the fastest axis in memory
    begins = np.ones(rows.shape, bool)
    np.not_equal(rows[..., 1:], rows[..., :-1], out=begins[..., 1:])
    first = np.flatnonzero(begins)
    begin = np.stack(np.unravel_index(first, rows.shape))
    end = begin + 1
    end[2] = begin[2] + np.diff(first, append=rows.size)
    value = rows[tuple(begin)]
    order = np.argsort(value, kind="stable")
    found, places = np.unique(value[order], return_index=True)
    low = np.minimum.reduceat(begin[:, order], places, axis=1).T.tolist()
    high = np.maximum.reduceat(end[:, order], places, axis=1).T.tolist()
    return {
        label: _shift((slice(i0, i1), slice(j0, j1), slice(k0, k1)), around)
        for label, (k0, j0, i0), (k1, j1, i1) in zip(found.tolist(), low, high, strict=True)
        if label
    }


def bounds_of(inside: NDArray[np.uint8] | NDArray[np.bool_]) -> Box | None:
    """Bounding box of the nonzero values of an array of three axes; None where all are 0."""
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


def _without_strays(part: NDArray[np.bool_], voxel_mm: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Remove small components that are far from the vertebra; they occur in edited masks.

    A vertebra that the scan truncates may have several components, so large ones are kept, and so
    are small ones near them. A component far from all of these leaves a gap along at least one
    axis, which is a fast test for masks without any.
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
    """Convert a box relative to another one to the coordinates of that one."""
    z, y, x = (
        slice(a.start + b.start, a.stop + b.start) for a, b in zip(inner, outer, strict=True)
    )
    return z, y, x
