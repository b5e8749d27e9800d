"""Split a label mask into vertebrae, and resample them on other grids.

Resampling uses positions in mm, so grids may be finer, coarser, rotated or sheared. Not here:
whether the levels are plausible (`pipeline.vertebrae.mask_rules`), and whether a mask matches its
CT (`pipeline.vertebrae.locate`).
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
"""Size of components, relative to the largest one of the level, below which they are kept only near
it."""
STRAY_MM = 8.0
"""Maximum gap in mm between components of one vertebra: coarse masks lose the thin laminae."""
TWICE_SHARE = 0.4
"""Minimum size of a second body, relative to the largest one, to count as a second vertebra."""
ACROSS_MM = 45.0
"""Maximum gap in mm across the spine between components of one vertebra at the same height: the two
sides of C1 if a mask has no arches, or the processes of a truncated vertebra."""
_COARSE_MM = 1.5
"""Voxel size in mm at which components are separated; smaller voxels would only take longer."""


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
    fault : str
        Reason why the voxels are not one vertebra; empty if they may be one.
    """

    level: str
    extent: Box
    inside: NDArray[np.bool_]
    fault: str = ""


def split_mask(mask: LabelMask, convention: str) -> list[MaskPart]:
    """Split a mask into its vertebrae, without stray voxels.

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
    lps_from_index = np.linalg.inv(mask.index_from_lps)
    along = int(abs(lps_from_index[2, :3]).argmax())
    parts = []
    for value, level in MASK_LABELS[convention].items():
        if extent := extents.get(value):
            body = _body(mask.labels[extent] == value, mask.voxel_mm, along)
            parts.append(MaskPart(level, extent, *body))
    return parts


def label_values(mask: LabelMask) -> list[int]:
    """Return the values of a mask except background, sorted."""
    return sorted(_extents(mask.labels))


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


def _body(
    part: NDArray[np.bool_], voxel_mm: NDArray[np.float64], along: int
) -> tuple[NDArray[np.bool_], str]:
    """The voxels of a level without strays, and why they are no single vertebra.

    Strays occur in masks that people edited. A vertebra may well be in several pieces, so those up
    to `STRAY_MM` apart (two voxels on coarse grids) are one body, and so are those side by side at
    the same height, along the axis `along` of the mask. Of several bodies the largest is the
    vertebra; one of about its size is a second vertebra under the same label.
    """
    steps = np.maximum(1, (_COARSE_MM / voxel_mm).astype(int))
    coarse = _shrink(part, steps)
    pieces, count = ndimage.label(coarse, np.ones((3, 3, 3)))
    if count < 2:
        return part, ""
    fine = pieces[
        np.ix_(*(np.arange(n) // step for n, step in zip(part.shape, steps, strict=True)))
    ]
    sizes = np.bincount(fine[part], minlength=count + 1)[1:]
    large = sizes >= STRAY_SHARE * sizes.max()
    body = _join(pieces, large, voxel_mm * steps)
    main = body[sizes.argmax()]
    bounds = (
        np.array(
            [
                [(side.start, side.stop) for side in extent]
                for extent in ndimage.find_objects(pieces)
            ]
        )
        * (voxel_mm * steps)[:, None]
    )
    gaps = _gaps(bounds, large & (body == main))
    same_height = gaps[:, along] <= max(STRAY_MM, 2 * voxel_mm[along])
    across = np.linalg.norm(np.delete(gaps, along, axis=1), axis=1) <= ACROSS_MM
    body[large & same_height & across] = main
    fault = ""
    for other in set(body[large].tolist()) - {main}:
        share = sizes[body == other].sum() / sizes[body == main].sum()
        if share >= TWICE_SHARE:
            gap = float(np.linalg.norm(_gaps(bounds, body == main)[body == other], axis=1).min())
            fault = f"the mask holds it twice: {share:.0%} of its size lies {gap:.0f} mm away"
    kept = large & (body == main)
    near = (_gaps(bounds, kept) < STRAY_MM).all(1)
    whole = part & np.isin(fine, 1 + np.flatnonzero(kept | (near & ~large)))
    return whole, fault


def _shrink(part: NDArray[np.bool_], steps: NDArray[np.int_]) -> NDArray[np.bool_]:
    """The part in blocks of `steps` voxels, each True where any voxel of it is."""
    for axis, step in enumerate(steps):
        part = np.logical_or.reduceat(part, np.arange(0, part.shape[axis], step), axis=axis)
    return part


def _join(
    pieces: NDArray[np.int32], large: NDArray[np.bool_], voxel_mm: NDArray[np.float64]
) -> NDArray[np.int_]:
    """For each piece the body that it belongs to: large pieces up to `STRAY_MM` apart are one."""
    reach = max(STRAY_MM, 2 * voxel_mm.max()) / 2
    around = [(int(np.ceil(reach / mm)),) * 2 for mm in voxel_mm]
    kept = np.pad(np.isin(pieces, 1 + np.flatnonzero(large)), around)
    reached = ndimage.distance_transform_edt(~kept, sampling=voxel_mm) <= reach
    bodies, _ = ndimage.label(reached, np.ones((3, 3, 3)))
    body = np.zeros(len(large), int)
    body[np.pad(pieces, around)[kept] - 1] = bodies[kept]
    return body


def _gaps(bounds: NDArray[np.float64], chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
    """For each box the gap in mm, along each axis, to the box around those that are chosen."""
    low, high = bounds[chosen, :, 0].min(0), bounds[chosen, :, 1].max(0)
    gaps: NDArray[np.float64] = np.maximum(low - bounds[:, :, 1], bounds[:, :, 0] - high)
    return np.maximum(0, gaps)


def _shift(inner: Box, outer: Box) -> Box:
    """Convert a box relative to another one to the coordinates of that one."""
    z, y, x = (
        slice(a.start + b.start, a.stop + b.start) for a, b in zip(inner, outer, strict=True)
    )
    return z, y, x
