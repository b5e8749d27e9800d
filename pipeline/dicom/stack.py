"""Put the frames of one stack in order, and find how its axes become canonical.

Only positions and directions count: no file name, InstanceNumber or SliceLocation orders anything,
so the same frames in any order give the same stack. Canonical means z from feet to head, y to the
back, x to the left, reached by a transposition and flips of whole axes alone: nothing is resampled.
Which frames belong together is `pipeline.dicom.series`.
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
"""Greatest difference of a regular gap from the median gap, as a share of it."""
MISSING_SHARE = 1 / 3
"""Of the gaps that are multiples of the median; where more are, the stack is uneven."""
SIDEWAYS_PIXELS = 0.5
"""How far a slice of a straight stack may lie off the line from the first to the last."""
TILT_DEGREES = 0.5


@dataclass(frozen=True)
class Orientation:
    """How stored slices became canonical: transposed first, then whole axes flipped.

    Parameters
    ----------
    transposed : bool
        Whether rows and columns were exchanged.
    flipped : (bool, bool, bool)
        (z, y, x) of the transposed slices; z is flipped where the normal of the stored slices,
        row direction x column direction, points to the feet.
    """

    transposed: bool
    flipped: tuple[bool, bool, bool]

    def turn(self, image: NDArray[np.generic]) -> NDArray[np.generic]:
        """A view of a stored slice, shape (rows, columns), in canonical axes (y, x)."""
        turned = image.T if self.transposed else image
        return turned[:: -1 if self.flipped[1] else 1, :: -1 if self.flipped[2] else 1]

    def map_rectangle(
        self, rectangle: tuple[float, float, float, float], shape: tuple[int, int]
    ) -> tuple[float, float, float, float]:
        """Map a rectangle of the stored image to the canonical slice.

        Parameters
        ----------
        rectangle : (float, float, float, float)
            x, y, width, height in pixels of the stored image; pixel 0 reaches from 0 to 1.
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
    """The frames of one stack, in canonical order, before any is decoded.

    Parameters
    ----------
    places : tuple of tuple of Candidate
        For each position, z ascending, the frames that claim it.
    orientation : Orientation
    row_direction, column_direction : (float, float, float)
        Unit vectors of the stored slices, along increasing column and row index.
    spacing : (float, float)
        mm between the rows and between the columns of the stored slices.
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
        """(slices, rows, columns), canonical."""
        rows, columns = self.stored_shape
        inside = (columns, rows) if self.orientation.transposed else (rows, columns)
        return (len(self.places), *inside)


def find_orientation(row: Vector, column: Vector) -> Orientation | None:
    """How slices with these directions become canonical; None where they are not near-axial."""
    normal = np.cross(row, column)
    if int(np.argmax(np.abs(normal))) != 2:
        return None
    transposed = abs(row[1]) + abs(column[0]) > abs(row[0]) + abs(column[1])
    to_left, to_back = (column, row) if transposed else (row, column)
    return Orientation(transposed, (bool(normal[2] < 0), to_back[1] < 0, to_left[0] < 0))


def find_normal(row: Vector, column: Vector, orientation: Orientation) -> NDArray[np.float64]:
    """The unit vector along which a stack's slices ascend, towards the head."""
    normal = np.cross(row, column)
    return -normal if orientation.flipped[0] else normal


def make_stack(frames: Sequence[Candidate], grid: Grid, orientation: Orientation) -> Stack:
    """Put frames of one grid in order; those that lie at one position share a place."""
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
    """The canonical geometry of the slices that were kept, z ascending, and its classes."""
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
    """Name what is not regular, from `storage_schemas.geometry.GEOMETRY_CLASSES`.

    A gap is regular within `GAP_TOLERANCE` of the median gap. One that is a whole multiple of it
    tells of missing slices, as long as such gaps are few; any other makes the stack uneven, and so
    does a slice that lies beside the straight line of the others.
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
    """The most frequent value; ties go to the lower one."""
    counts = Counter(values)
    return min(counts, key=lambda value: (-counts[value], value))
