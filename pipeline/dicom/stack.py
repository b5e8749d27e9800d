"""Which frames form the axial CT stack, in which order, and how its axes become canonical.

Only positions and directions count: no file name, InstanceNumber or SliceLocation orders anything,
so the same frames in any order give the same stack. Canonical means z from feet to head, y to the
back, x to the left, reached by a transposition and flips of whole axes alone: nothing is resampled.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.dicom.headers import Header
from pipeline.dicom.planes import Plane, Vector
from storage_schemas.geometry import StackGeometry

DIRECTION_TOLERANCE = 1e-3
"""Greatest difference of a direction's component within a stack."""
SPACING_TOLERANCE_MM = 1e-4
SAME_POSITION_MM = 0.01
"""Slices closer than this along the normal lie at one position."""
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


@dataclass(frozen=True, slots=True)
class Candidate:
    """One readable frame that may become a slice."""

    header: Header
    frame: int
    plane: Plane


@dataclass(frozen=True)
class Stack:
    """The frames of one stack, in canonical order, before any is decoded.

    Parameters
    ----------
    places : tuple of tuple of Candidate
        For each position, z ascending, the frames that claim it.
    orientation : Orientation
    row_direction, column_direction : (float, float, float)
        Of the stored slices.
    """

    places: tuple[tuple[Candidate, ...], ...]
    orientation: Orientation
    row_direction: Vector
    column_direction: Vector

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


def find_stack(candidates: Iterable[Candidate]) -> Stack | None:
    """Find the axial stack with the most slices; ties go to the lower series UID.

    Returns
    -------
    Stack or None
        None where no group of frames is axial and has two positions or more.
    """
    best: tuple[tuple[int, str, int], Stack] | None = None
    for number, group in enumerate(group_frames(candidates)):
        first = group[0].plane
        orientation = find_orientation(first.row_direction, first.column_direction)
        if orientation is None or first.localizer:
            continue
        stack = _make_stack(group, orientation)
        rank = (-len(stack.places), group[0].header.series, number)
        if len(stack.places) > 1 and (best is None or rank < best[0]):
            best = rank, stack
    return best[1] if best else None


def group_frames(candidates: Iterable[Candidate]) -> list[list[Candidate]]:
    """Group frames by series, size, spacing and orientation, whatever order they come in.

    Localizers form groups of their own.
    """
    exact: dict[_Form, list[Candidate]] = {}
    for candidate in candidates:
        header, plane = candidate.header, candidate.plane
        form = _Form(
            (header.series, header.rows, header.columns, plane.localizer),
            plane.spacing,
            (*plane.row_direction, *plane.column_direction),
        )
        exact.setdefault(form, []).append(candidate)
    groups: list[tuple[_Form, list[Candidate]]] = []
    # The most frequent form comes first and stands for those that differ from it by rounding.
    for form, members in sorted(exact.items(), key=lambda item: (-len(item[1]), item[0])):
        for other, group in groups:
            if form.is_close(other):
                group.extend(members)
                break
        else:
            groups.append((form, list(members)))
    return [group for _, group in groups]


class _Form(NamedTuple):
    """What the frames of a group have in common: exactly, and within a tolerance."""

    kind: tuple[str, int, int, bool]
    spacing: tuple[float, float]
    directions: tuple[float, ...]

    def is_close(self, other: "_Form") -> bool:
        return (
            self.kind == other.kind
            and _distance(self.spacing, other.spacing) <= SPACING_TOLERANCE_MM
            and _distance(self.directions, other.directions) <= DIRECTION_TOLERANCE
        )


def _distance(values: Sequence[float], others: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(values, others, strict=True))


def find_orientation(row: Vector, column: Vector) -> Orientation | None:
    """How slices with these directions become canonical; None where they are not near-axial."""
    normal = np.cross(row, column)
    if int(np.argmax(np.abs(normal))) != 2:
        return None
    transposed = abs(row[1]) + abs(column[0]) > abs(row[0]) + abs(column[1])
    to_left, to_back = (column, row) if transposed else (row, column)
    return Orientation(transposed, (bool(normal[2] < 0), to_back[1] < 0, to_left[0] < 0))


def _make_stack(group: Sequence[Candidate], orientation: Orientation) -> Stack:
    first = group[0].plane
    normal = np.cross(first.row_direction, first.column_direction)
    if orientation.flipped[0]:
        normal = -normal
    offsets = np.asarray([candidate.plane.position for candidate in group]) @ normal
    places: list[list[Candidate]] = []
    last = -np.inf
    for index in np.argsort(offsets, kind="stable"):
        if offsets[index] - last < SAME_POSITION_MM:
            places[-1].append(group[index])
        else:
            places.append([group[index]])
            last = offsets[index]
    return Stack(
        tuple(map(tuple, places)), orientation, first.row_direction, first.column_direction
    )


def make_geometry(stack: Stack, kept: Sequence[Candidate], *, duplicates: bool) -> StackGeometry:
    """The canonical geometry of the slices that were kept, z ascending, and its classes."""
    turned = stack.orientation
    rows, columns = stack.stored_shape
    row, column = stack.row_direction, stack.column_direction
    spacing = kept[0].plane.spacing
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
