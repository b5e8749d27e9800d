"""The geometry of a stack of slices: voxel indices and patient coordinates in mm.

Coordinates are DICOM's patient coordinates, LPS: x increases to the patient's left, y to the back,
z to the head (DICOM PS3.3 C.7.6.2.1.1). Arrays are indexed (z, y, x); points are written (x, y, z).
Each slice has the exact position of its first voxel, so stacks that are tilted or unevenly spaced
map exactly, too.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from storage_schemas.parsing.strict_json import Side, Spacing, convert

Floats = NDArray[np.float64]
Box = tuple[slice, slice, slice]

GEOMETRY_CLASSES = ("regular", "uneven", "missing", "duplicate", "tilted")
"""Classes of a stack's geometry; ``regular`` excludes all others."""
Point = tuple[float, float, float]


@dataclass(frozen=True)
class StackGeometry:
    """The geometry of one stack of parallel slices.

    Parameters
    ----------
    shape : tuple of int
        Number of (slices, rows, columns), at least 1 each.
    positions : tuple of (float, float, float)
        LPS position in mm of the centre of the first voxel of each slice, z ascending.
    row_direction, column_direction : (float, float, float)
        Unit vectors, LPS, along increasing column index (x) and increasing row index (y).
    pixel_spacing : (float, float)
        Distance in mm between rows (along y) and between columns (along x).
    classes : tuple of str
        Classes from `GEOMETRY_CLASSES`.

    Raises
    ------
    ValueError
        Where the number of positions is not that of the slices, or a class is unknown.
    """

    shape: tuple[Side, Side, Side]
    positions: tuple[Point, ...]
    row_direction: Point
    column_direction: Point
    pixel_spacing: tuple[Spacing, Spacing]
    classes: tuple[str, ...] = ("regular",)

    def __post_init__(self) -> None:
        if len(self.positions) != self.shape[0]:
            raise ValueError(f"{self.shape[0]} slices, but {len(self.positions)} positions")
        if unknown := set(self.classes) - set(GEOMETRY_CLASSES):
            raise ValueError(f"unknown geometry classes {sorted(unknown)}")

    @cached_property
    def normal(self) -> Floats:
        """Unit vector perpendicular to the slices, shape (3,), LPS."""
        return cast(Floats, np.cross(self.row_direction, self.column_direction))

    @cached_property
    def offsets(self) -> Floats:
        """Distance of each slice from the origin along the normal, in mm, shape (slices,)."""
        return np.asarray(self.positions, np.float64) @ self.normal

    @cached_property
    def slice_spacing(self) -> float:
        """Median distance between neighbouring slices along the normal, in mm, always positive."""
        if self.shape[0] < 2:
            return 1.0
        return float(np.median(np.abs(np.diff(self.offsets))))

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size (z, y, x) in mm; z is measured from positions, not from SliceThickness."""
        return (self.slice_spacing, *self.pixel_spacing)

    @cached_property
    def tilt_degrees(self) -> float:
        """Angle between the normal and the line through first and last slice, in degrees."""
        way = np.subtract(self.positions[-1], self.positions[0])
        length = float(np.linalg.norm(way))
        if length == 0:
            return 0.0
        return float(np.degrees(np.arccos(min(1.0, abs(float(way @ self.normal)) / length))))

    @cached_property
    def affine(self) -> Floats:
        """Matrix (4, 4) from homogeneous (z, y, x) indices to LPS (x, y, z) in mm.

        Exact for evenly spaced stacks, also where they are sheared; for uneven ones it is linear
        from the first slice to the last. `to_lps` and `to_index` are exact for every stack.
        """
        step = self.normal * self.slice_spacing
        if self.shape[0] > 1:
            step = np.subtract(self.positions[-1], self.positions[0]) / (self.shape[0] - 1)
        matrix = np.eye(4)
        matrix[:3, 0] = step
        matrix[:3, 1] = np.multiply(self.column_direction, self.pixel_spacing[0])
        matrix[:3, 2] = np.multiply(self.row_direction, self.pixel_spacing[1])
        matrix[:3, 3] = self.positions[0]
        return matrix

    def to_lps(self, indices: ArrayLike) -> Floats:
        """Map (z, y, x) indices to LPS points.

        Parameters
        ----------
        indices : array_like, shape (..., 3)
            Indices of voxels, also fractional ones.

        Returns
        -------
        ndarray, shape (..., 3), float64, mm
        """
        z, y, x = np.moveaxis(np.asarray(indices, np.float64), -1, 0)
        origin = self._slice_origin(z)
        return cast(
            Floats,
            origin
            + (y * self.pixel_spacing[0])[..., None] * np.asarray(self.column_direction)
            + (x * self.pixel_spacing[1])[..., None] * np.asarray(self.row_direction),
        )

    def to_index(self, points: ArrayLike) -> Floats:
        """Map LPS points to (z, y, x) indices.

        Parameters
        ----------
        points : array_like, shape (..., 3), mm

        Returns
        -------
        ndarray, shape (..., 3), float64
            Fractional indices. Beyond the first and the last slice the stack is continued with its
            slice spacing.
        """
        points = np.asarray(points, np.float64)
        z = self._slice_index(points @ self.normal)
        inside = points - self._slice_origin(z)
        y = inside @ np.asarray(self.column_direction) / self.pixel_spacing[0]
        x = inside @ np.asarray(self.row_direction) / self.pixel_spacing[1]
        return np.stack([z, y, x], axis=-1)

    def crop(self, box: Box) -> "StackGeometry":
        """Return the geometry of ``volume[box]``.

        Parameters
        ----------
        box : tuple of slice
            Slices along (z, y, x) with start and stop given and no step.
        """
        z, y, x = box
        corner = self.to_lps([z.start, y.start, x.start])
        shift = corner - np.asarray(self.positions[z.start])
        return replace(
            self,
            shape=(z.stop - z.start, y.stop - y.start, x.stop - x.start),
            positions=tuple(
                cast(tuple[float, float, float], tuple((np.asarray(p) + shift).tolist()))
                for p in self.positions[z]
            ),
        )

    def _slice_origin(self, z: Floats) -> Floats:
        """Return the LPS position of the first voxel at fractional slice indices, (..., 3)."""
        positions = np.asarray(self.positions, np.float64)
        count = self.shape[0]
        known = np.clip(z, 0, count - 1)
        origin = np.stack([np.interp(known, np.arange(count), p) for p in positions.T], axis=-1)
        return cast(Floats, origin + (z - known)[..., None] * self._outward_step)

    def _slice_index(self, offset: Floats) -> Floats:
        known = np.clip(offset, self.offsets[0], self.offsets[-1])
        index = np.interp(known, self.offsets, np.arange(self.shape[0], dtype=np.float64))
        return index + (offset - known) / float(self._outward_step @ self.normal)

    @cached_property
    def _outward_step(self) -> Floats:
        """Vector from one slice to the next where the stack is continued beyond its ends."""
        if self.shape[0] < 2:
            return self.normal * self.slice_spacing
        way = np.subtract(self.positions[-1], self.positions[0])
        return way * (self.slice_spacing / float(way @ self.normal))

    def ome_transforms(self) -> list[dict[str, Any]]:
        """Return OME-Zarr 0.5 coordinate transformations: scale, then translation, in mm.

        OME-Zarr 0.5 has no rotation or shear; `to_json` has the exact geometry.
        """
        return [
            {"type": "scale", "scale": list(self.spacing)},
            {"type": "translation", "translation": list(self.positions[0][::-1])},
        ]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; `from_json` reads them back exactly."""
        return {
            "shape": list(self.shape),
            "positions": [list(p) for p in self.positions],
            "row_direction": list(self.row_direction),
            "column_direction": list(self.column_direction),
            "pixel_spacing": list(self.pixel_spacing),
            "slice_spacing": self.slice_spacing,
            "classes": list(self.classes),
        }

    @classmethod
    def from_json(cls, data: Any) -> "StackGeometry":
        """Read what `to_json` returned; raises ValueError, with the place, on anything else."""
        return convert(data, cls)
