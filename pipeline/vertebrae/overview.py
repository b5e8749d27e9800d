"""Make the overview: the whole volume in a small cube, for the localizer and for pictures.

In the plane, pixels are averaged over the area of a voxel of the cube; along z the nearest slice by
position in mm is taken. The overview of a sheared stack is sheared too, as its affine tells.
"""

import numpy as np
from numpy.typing import NDArray

from storage_schemas.geometry import StackGeometry

SIZE = 128
"""Voxels along each side of a stored overview."""


def make_overview(
    hu: NDArray[np.int16], geometry: StackGeometry, size: int = SIZE
) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    """Shrink a volume to a cube.

    Parameters
    ----------
    hu : ndarray, shape (z, y, x), int16, HU
        Canonical volume.
    geometry : StackGeometry
        Geometry of the volume.
    size : int
        Voxels along each side of the cube.

    Returns
    -------
    cube : ndarray, shape (size, size, size), int16, HU
        Overview of the volume.
    affine : ndarray, shape (4, 4), float64
        Matrix from homogeneous (z, y, x) indices of the cube to LPS (x, y, z) in mm.
    """
    slices = _nearest_slices(geometry, size)
    cube = np.empty((size, size, size), np.int16)
    for k, z in enumerate(slices):
        if k and z == slices[k - 1]:
            cube[k] = cube[k - 1]
        else:
            cube[k] = _shrink(hu[z], size)
    return cube, _affine(geometry, size)


def overview_geometry(affine: NDArray[np.float64], size: int = SIZE) -> StackGeometry:
    """Return the geometry of an overview.

    Parameters
    ----------
    affine : ndarray, shape (4, 4), float64
        Matrix from homogeneous (z, y, x) indices of the cube to LPS (x, y, z) in mm.
    size : int
        Voxels along each side of the cube.
    """
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    origins = affine[:3, 3] + np.arange(size)[:, None] * affine[:3, 0]
    return StackGeometry(
        (size, size, size),
        tuple((float(x), float(y), float(z)) for x, y, z in origins),
        _unit(affine[:3, 2]),
        _unit(affine[:3, 1]),
        (float(steps[1]), float(steps[2])),
    )


def _unit(vector: NDArray[np.float64]) -> tuple[float, float, float]:
    x, y, z = (vector / np.linalg.norm(vector)).tolist()
    return x, y, z


def _shrink(image: NDArray[np.int16], size: int) -> NDArray[np.float64]:
    """Average an image over size x size blocks of nearly equal size; repeat pixels if fewer."""
    sums, rows = _sum_runs(image, size, 0)
    sums, columns = _sum_runs(sums, size, 1)
    return np.asarray(np.rint(sums / np.outer(rows, columns)))


def _sum_runs(
    image: NDArray[np.int16] | NDArray[np.int32], size: int, axis: int
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Sum an axis over `size` runs of pixels, and return the lengths of the runs as well.

    The n-th pixels of all runs are added at once, which is several times faster than a loop over
    the runs.
    """
    length = image.shape[axis]
    edges = np.arange(size) * length // size
    runs = np.diff(np.append(edges, length)).clip(1)
    sums = image.take(edges, axis).astype(np.int32)
    for further in range(1, runs.max()):
        longer = np.expand_dims(runs > further, 1 - axis)
        pixels = image.take(edges + further, axis, mode="clip")
        np.add(sums, pixels, out=sums, where=True if longer.all() else longer)
    return sums, runs


def _length(geometry: StackGeometry) -> float:
    """Length of the stack along its normal in mm, including half a slice at each end."""
    return float(geometry.offsets[-1] - geometry.offsets[0]) + geometry.slice_spacing


def _nearest_slices(geometry: StackGeometry, size: int) -> list[int]:
    step = _length(geometry) / size
    start = geometry.offsets[0] - geometry.slice_spacing / 2
    wanted = start + (np.arange(size) + 0.5) * step
    return [int(z) for z in np.abs(geometry.offsets[:, None] - wanted).argmin(0)]


def _affine(geometry: StackGeometry, size: int) -> NDArray[np.float64]:
    first = np.asarray(geometry.positions[0])
    direction = geometry.normal
    if geometry.shape[0] > 1:
        direction = np.asarray(geometry.positions[-1]) - first
        direction = direction / float(direction @ geometry.normal)
    shrink_y, shrink_x = geometry.shape[1] / size, geometry.shape[2] / size
    rows = np.multiply(geometry.column_direction, geometry.pixel_spacing[0])
    columns = np.multiply(geometry.row_direction, geometry.pixel_spacing[1])
    step = _length(geometry) / size
    affine = np.eye(4)
    affine[:3, 0] = direction * step
    affine[:3, 1] = rows * shrink_y
    affine[:3, 2] = columns * shrink_x
    affine[:3, 3] = (
        first
        + direction * (step - geometry.slice_spacing) / 2
        + rows * (shrink_y - 1) / 2
        + columns * (shrink_x - 1) / 2
    )
    return affine
