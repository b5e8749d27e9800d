"""Order the frames of one stack, and find the transform to canonical axes.

Frames are ordered by position and orientation only, never by file name, InstanceNumber or
SliceLocation, so the order of the input has no effect. In canonical axes z increases from feet to
head, y to the back and x to the left. The transform is a transposition and flips of axes, without
resampling. `pipeline.dicom.series` groups the frames into stacks.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.dicom.planes import Vector
from pipeline.dicom.selection import Candidate
from pipeline.dicom.series.grids import Grid
from pipeline.dicom.series.passes import SAME_POSITION_MM
from storage_schemas.geometry import StackGeometry

GAP_TOLERANCE = 0.05
"""Maximum deviation of a regular gap from the median gap, as a fraction of the median."""
MISSING_SHARE = 1 / 3
"""Maximum fraction of gaps that are multiples of the median; above it the stack is uneven."""
SIDEWAYS_PIXELS = 0.5
"""Maximum distance in pixels of a slice from the line between the first and the last."""
TILT_DEGREES = 0.5


@dataclass(frozen=True)
class Orientation:
    """Transform from stored to canonical slices: transposition, then flips of axes.

    Parameters
    ----------
    transposed : bool
        Whether rows and columns are exchanged.
    flipped : (bool, bool, bool)
        Flipped axes (z, y, x) of the transposed slices. z is flipped if the normal of the stored
        slices, row direction x column direction, points to the feet.
    """

    transposed: bool
    flipped: tuple[bool, bool, bool]

    def turn(self, image: NDArray[np.generic]) -> NDArray[np.generic]:
        """Return a view of a stored slice, shape (rows, columns), in canonical axes (y, x)."""
        turned = image.T if self.transposed else image
        return turned[:: -1 if self.flipped[1] else 1, :: -1 if self.flipped[2] else 1]

    def map_rectangle(
        self, rectangle: tuple[float, float, float, float], shape: tuple[int, int]
    ) -> tuple[float, float, float, float]:
        """Map a rectangle of the stored image to the canonical slice.

        Parameters
        ----------
        rectangle : (float, float, float, float)
            x, y, width, height in pixels of the stored image; pixel 0 spans 0 to 1.
        shape : (int, int)
            Rows and columns of the stored image.

        Returns
        -------
        (float, float, float, float)
            x, y, width, height in pixels of the canonical slice.
        """
        x, y, width, height = rectangle
        rows, columns = shape
        if self.transposed:
            x, y, width, height, rows, columns = y, x, height, width, columns, rows
        if self.flipped[1]:
            y = rows - y - height
        if self.flipped[2]:
            x = columns - x - width
        return x, y, width, height


@dataclass(frozen=True)
class Stack:
    """The frames of one stack in canonical order, not yet decoded.

    Parameters
    ----------
    places : tuple of tuple of Candidate
        Frames at each position, z ascending; more than one if positions are repeated.
    orientation : Orientation
    row_direction, column_direction : (float, float, float)
        Unit vectors of the stored slices, along increasing column and row index.
    spacing : (float, float)
        Distance between rows and between columns of the stored slices, mm.
    offsets : tuple of float
        Position of each place along the normal, mm, ascending.
    """

    places: tuple[tuple[Candidate, ...], ...]
    orientation: Orientation
    row_direction: Vector
    column_direction: Vector
    spacing: tuple[float, float]
    offsets: tuple[float, ...] = ()

    @property
    def stored_shape(self) -> tuple[int, int]:
        """Rows and columns of the stored slices."""
        header = self.places[0][0].header
        return header.rows, header.columns

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (slices, rows, columns) in canonical axes."""
        rows, columns = self.stored_shape
        inside = (columns, rows) if self.orientation.transposed else (rows, columns)
        return (len(self.places), *inside)


def find_orientation(row: Vector, column: Vector) -> Orientation | None:
    """Find the transform to canonical axes; None if the slices are not near-axial."""
    normal = np.cross(row, column)
    if int(np.argmax(np.abs(normal))) != 2:
        return None
    transposed = abs(row[1]) + abs(column[0]) > abs(row[0]) + abs(column[1])
    to_left, to_back = (column, row) if transposed else (row, column)
    return Orientation(transposed, (bool(normal[2] < 0), to_back[1] < 0, to_left[0] < 0))


def find_normal(row: Vector, column: Vector, orientation: Orientation) -> NDArray[np.float64]:
    """Return the unit normal of the slices, towards the head."""
    normal = np.cross(row, column)
    return -normal if orientation.flipped[0] else normal


def make_stack(frames: Sequence[Candidate], grid: Grid, orientation: Orientation) -> Stack:
    """Order the frames of one grid; frames at the same position are grouped."""
    normal = find_normal(grid.row_direction, grid.column_direction, orientation)
    offsets = np.asarray([candidate.plane.position for candidate in frames]) @ normal
    places: list[list[Candidate]] = []
    begins: list[float] = []
    for index in np.argsort(offsets, kind="stable").tolist():
        if begins and offsets[index] - begins[-1] < SAME_POSITION_MM:
            places[-1].append(frames[index])
        else:
            places.append([frames[index]])
            begins.append(float(offsets[index]))
    return Stack(
        tuple(map(tuple, places)),
        orientation,
        grid.row_direction,
        grid.column_direction,
        grid.spacing,
        tuple(begins),
    )


def make_geometry(stack: Stack, kept: Sequence[Candidate], *, duplicates: bool) -> StackGeometry:
    """Make the canonical geometry, with its classes, of the kept slices, z ascending."""
    turned = stack.orientation
    rows, columns = stack.stored_shape
    row, column = stack.row_direction, stack.column_direction
    spacing = stack.spacing
    if turned.transposed:
        row, column, spacing = column, row, (spacing[1], spacing[0])
        rows, columns = columns, rows
    shift = np.zeros(3)
    if turned.flipped[1]:
        shift += np.multiply(column, (rows - 1) * spacing[0])
        column = _opposite(column)
    if turned.flipped[2]:
        shift += np.multiply(row, (columns - 1) * spacing[1])
        row = _opposite(row)
    corners = np.asarray([candidate.plane.position for candidate in kept]) + shift
    geometry = StackGeometry(
        shape=(len(kept), rows, columns),
        positions=tuple((x, y, z) for x, y, z in corners.tolist()),
        row_direction=row,
        column_direction=column,
        pixel_spacing=spacing,
    )
    return replace(geometry, classes=classify(geometry, duplicates=duplicates))


def _opposite(direction: Vector) -> Vector:
    return (0.0 - direction[0], 0.0 - direction[1], 0.0 - direction[2])


def classify(geometry: StackGeometry, *, duplicates: bool) -> tuple[str, ...]:
    """Return the classes of a geometry, from `storage_schemas.geometry.GEOMETRY_CLASSES`.

    A gap is regular within `GAP_TOLERANCE` of the median gap. A few gaps that are integer multiples
    of the median mean missing slices. Other gaps, many multiples, or a slice off the line of the
    others make the stack uneven.
    """
    ratios = np.abs(np.diff(geometry.offsets)) / geometry.slice_spacing
    whole = np.rint(ratios)
    is_multiple = np.abs(ratios - whole) <= GAP_TOLERANCE
    missing = is_multiple & (whole >= 2)
    few = np.count_nonzero(missing) <= MISSING_SHARE * len(ratios)
    found = {
        "uneven": bool((~is_multiple | (whole < 1)).any()) or not few or not _is_straight(geometry),
        "missing": bool(missing.any()) and few,
        "duplicate": duplicates,
        "tilted": geometry.tilt_degrees > TILT_DEGREES,
    }
    return tuple(name for name, is_so in found.items() if is_so) or ("regular",)


def _is_straight(geometry: StackGeometry) -> bool:
    positions, offsets = np.asarray(geometry.positions), geometry.offsets
    share = (offsets - offsets[0]) / (offsets[-1] - offsets[0])
    line = positions[0] + share[:, None] * (positions[-1] - positions[0])
    sideways = float(np.linalg.norm(positions - line, axis=1).max())
    return sideways <= SIDEWAYS_PIXELS * min(geometry.pixel_spacing)


def most_common(values: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """Return the most frequent value, the lowest in case of ties."""
    counts = Counter(values)
    return min(counts, key=lambda value: (-counts[value], value))
