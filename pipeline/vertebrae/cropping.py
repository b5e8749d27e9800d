"""How much of the volume belongs to a vertebra's crop: its extent and a margin, in mm."""

import numpy as np
from numpy.typing import NDArray

from pipeline.vertebrae.locate import LocatedVertebra
from storage_schemas.geometry import Box, StackGeometry


def crop_box(extent: Box, geometry: StackGeometry, margin_mm: float) -> Box:
    """Widen an extent by a margin on all six sides, clipped to the volume.

    Along z the margin is measured between the slices' positions, so it holds in uneven stacks.

    Parameters
    ----------
    extent : Box
        The vertebra's, in the volume.
    geometry : StackGeometry
        The volume's.
    margin_mm : float
        Not negative.
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
    """The vertebra's voxels on its crop's grid: 1 inside, 0 outside, shape of the box."""
    mask = np.zeros([side.stop - side.start for side in box], np.uint8)
    z, y, x = (
        slice(inner.start - outer.start, inner.stop - outer.start)
        for inner, outer in zip(found.extent, box, strict=True)
    )
    mask[z, y, x] = found.inside
    return mask


def box_bounds(box: Box) -> tuple[int, int, int, int, int, int]:
    """A box as (z0, z1, y0, y1, x0, x1), ends exclusive."""
    z, y, x = box
    return (z.start, z.stop, y.start, y.stop, x.start, x.stop)
