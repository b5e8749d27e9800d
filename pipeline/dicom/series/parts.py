"""Divide a study into parts: the stacks of each series, and the frames that form no stack."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.dicom.selection import Candidate
from pipeline.dicom.series.acquisitions import FrameSet, divide_acquisitions
from pipeline.dicom.series.facts import SeriesFacts, read_facts, read_origin
from pipeline.dicom.series.grids import Grid, group_grids
from pipeline.dicom.series.image_type import Origin
from pipeline.dicom.stack import Orientation, Stack, find_normal, find_orientation, make_stack

OBLIQUE_DEGREES = 5.0
"""Angle between normal and z above which a stack whose slices follow the normal is a reformat: with
a tilted gantry, slices follow the table."""


@dataclass(frozen=True)
class SeriesPart:
    """Frames of one series that belong together.

    Parameters
    ----------
    series : str
        SeriesInstanceUID; may be empty.
    frames : tuple of Candidate
    facts : SeriesFacts
        Facts of the first frame; an oblique stack is classified as a reformat.
    stack : Stack or None
        Ordered frames; None if the frames are not axial, lie at one position, or are no slices.
    grid : Grid
        Grid of the frames; several acquisitions of a series may share one.
    axial : bool
        Whether the frames are near-axial.
    frame_set : FrameSet
        Acquisition, with the frames removed from it and the number of ambiguous positions.
    """

    series: str
    frames: tuple[Candidate, ...]
    facts: SeriesFacts
    stack: Stack | None
    grid: Grid
    axial: bool
    frame_set: FrameSet

    @property
    def extent(self) -> float:
        """Distance from the first slice to the last, mm."""
        return self.stack.offsets[-1] - self.stack.offsets[0] if self.stack else 0.0

    @property
    def step(self) -> float:
        """Median distance between slices, mm."""
        return float(np.median(np.diff(self.stack.offsets))) if self.stack else 0.0

    @property
    def slices(self) -> int:
        """Number of positions of the stack, or of frames if there is none."""
        return len(self.stack.places) if self.stack else len(self.frames)


def find_parts(frames: Iterable[Candidate]) -> list[SeriesPart]:
    """Divide the frames of a study into parts, in an order that depends only on headers."""
    parts = []
    for grid in group_grids(frames):
        orientation = find_orientation(grid.row_direction, grid.column_direction)
        for some in _by_slices(grid.frames):
            if orientation is None or read_origin(some[0]) >= Origin.SCOUT:
                parts.append(_make_part(some, None, grid, FrameSet(tuple(some)), orientation))
                continue
            normal = find_normal(grid.row_direction, grid.column_direction, orientation)
            offsets = np.asarray([frame.plane.position for frame in some]) @ normal
            sets = divide_acquisitions(some, offsets)
            parts += [_stack_part(found, grid, orientation) for found in sets]
    return sorted(parts, key=_order)


def _by_slices(frames: Sequence[Candidate]) -> list[list[Candidate]]:
    """Group frames by origin."""
    groups: dict[Origin, list[Candidate]] = {}
    for frame in frames:
        groups.setdefault(read_origin(frame), []).append(frame)
    return list(groups.values())


def _stack_part(found: FrameSet, grid: Grid, orientation: Orientation) -> SeriesPart:
    stack = make_stack(found.frames, grid, orientation)
    if len(stack.places) < 2 or found.tracking:
        return _make_part(found.frames, None, grid, found, orientation)
    return _make_part(found.frames, stack, grid, found, orientation)


def _make_part(
    frames: Sequence[Candidate],
    stack: Stack | None,
    grid: Grid,
    found: FrameSet,
    orientation: Orientation | None,
) -> SeriesPart:
    facts = read_facts(frames[0])
    if stack is not None and facts.origin < Origin.REFORMAT and _is_oblique(stack):
        facts = SeriesFacts(**{**vars(facts), "origin": Origin.REFORMAT})
    series, axial = frames[0].header.series, orientation is not None
    return SeriesPart(series, tuple(frames), facts, stack, grid, axial, found)


def _is_oblique(stack: Stack) -> bool:
    normal = find_normal(stack.row_direction, stack.column_direction, stack.orientation)
    lean = np.degrees(np.arccos(min(1.0, abs(float(normal[2])))))
    first, last = (np.asarray(stack.places[i][0].plane.position) for i in (0, -1))
    along = (last - first) / np.linalg.norm(last - first)
    return bool(lean > OBLIQUE_DEGREES and float(along @ normal) > np.cos(np.radians(1.0)))


def _order(part: SeriesPart) -> tuple[object, ...]:
    """Sort key: SeriesNumber, time, and UIDs last, since anonymisers change them."""
    first = min(part.frames, key=lambda frame: (frame.plane.position, frame.frame))
    values = first.header.elements.values
    names = ("acquisition", "acquisition_time", "content_time", "instance_number", "kernel")
    return (
        part.facts.number is None,
        part.facts.number or 0,
        *(values.get(name, b"") for name in names),
        first.plane.position,
        part.series,
    )
