"""Compute the box of a vertebra's crop: the extent of the vertebra and a margin in mm."""

import numpy as np
from numpy.typing import NDArray

from pipeline.vertebrae.locate import LocatedVertebra
from storage_schemas.geometry import Box, StackGeometry


def crop_box(extent: Box, geometry: StackGeometry, margin_mm: float) -> Box:
    """Widen an extent by a margin on all six sides, clipped to the volume.

    The margin along z is measured between the positions of slices, so it is exact in stacks of
    uneven spacing.

    Parameters
    ----------
    extent : Box
        Box of the vertebra in the volume.
    geometry : StackGeometry
        Geometry of the volume.
    margin_mm : float
        Margin in mm, 0 or more.

    Returns
    -------
    Box
        Box of the crop in the volume.
    """
    offsets = geometry.offsets
    z0 = int(np.searchsorted(offsets, offsets[extent[0].start] - margin_mm, "left"))
    z1 = int(np.searchsorted(offsets, offsets[extent[0].stop - 1] + margin_mm, "right"))
    sides = []
    for side, length, spacing in zip(
        extent[1:], geometry.shape[1:], geometry.pixel_spacing, strict=True
    ):
        pixels = int(np.ceil(margin_mm / spacing))
        sides.append(slice(max(0, side.start - pixels), min(length, side.stop + pixels)))
    return slice(z0, z1), sides[0], sides[1]


def crop_mask(found: LocatedVertebra, box: Box) -> NDArray[np.uint8]:
    """Return the mask of a vertebra on the grid of its crop.

    Parameters
    ----------
    found : LocatedVertebra
        Vertebra in the volume.
    box : Box
        Box of the crop in the volume, which contains the extent of the vertebra.

    Returns
    -------
    ndarray, shape of the box, uint8
        1 inside the vertebra, 0 outside.
    """
    mask = np.zeros([side.stop - side.start for side in box], np.uint8)
    z, y, x = (
        slice(inner.start - outer.start, inner.stop - outer.start)
        for inner, outer in zip(found.extent, box, strict=True)
    )
    mask[z, y, x] = found.inside
    return mask


def box_bounds(box: Box) -> tuple[int, int, int, int, int, int]:
    """Convert a box to (z0, z1, y0, y1, x0, x1), ends exclusive."""
    z, y, x = box
    return (z.start, z.stop, y.start, y.stop, x.start, x.stop)
