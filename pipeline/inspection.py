"""What the pipeline would make of a source, from the headers alone: nothing is decoded or written.

`inspect_studies` reads, and `Inspection.to_json` gives the result to programs. Not here: how it is
printed (`pipeline.report.inspection_tables`). Names and dates of patients are never part of it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline.config import Layout, StudyConfig
from pipeline.dicom.headers import CT_CLASSES, read_header
from pipeline.dicom.hounsfield import check_rescale
from pipeline.dicom.limits import Limits
from pipeline.dicom.pixeldata import check_length
from pipeline.dicom.selection import (
    Candidate,
    NoVolumeError,
    UnusedObject,
    read_objects,
    where,
)
from pipeline.dicom.series.choice import choose_stack
from pipeline.dicom.series.image_type import Origin
from pipeline.dicom.series.parts import SeriesPart, find_parts
from pipeline.dicom.series.preference import SeriesRule, choose_part
from pipeline.dicom.stack import Stack, make_geometry
from pipeline.dicom.syntaxes import DEFLATED, NATIVE
from pipeline.source.listing import HEAD_BYTES
from pipeline.study_rules import check_identity, check_share
from storage_schemas.errors import RunError, SliceError, StudyError
from storage_schemas.objects import REQUESTS, as_text
from storage_schemas.outcomes import STORED

READABLE = "readable"
"""The outcome of a study that gives a volume; any other is the kind that refuses it."""
Head = Callable[[str, int], bytes]


@dataclass(frozen=True)
class SeriesView:
    """Frames of one series that belong together: a stack, or frames that form none.

    Parameters
    ----------
    series : str
        SeriesInstanceUID; may be empty.
    number : int or None
        SeriesNumber.
    chosen : bool
        Whether this is the stack that would be read.
    reason : str
        Why it would be read, or not.
    axial, localizer : bool
        Whether the frames are near-axial, and whether they are scouts.
    origin, kernel : str
        How the images were made (``original``, ``derived``, ``reformat``, ``projection``, ...), and
        how sharp their kernel is (``sharp``, ``medium``, ``soft``, ``unknown``).
    image : str
        The kind of image, from its SOP class.
    syntaxes : tuple of str
        Transfer syntax UIDs.
    slices : int
        Positions; two frames at one position count once.
    rows, columns : int
        Stored.
    spacing : tuple of float
        mm, canonical (z, y, x); (y, x) as stored where the group is no axial stack.
    gaps : tuple of float
        Least, median and greatest distance of neighbours along the normal, mm.
    tilt_degrees : float
    geometry : tuple of str
        Geometry classes. Empty, as `gaps`, where the group is no axial stack of two slices.
    """

    series: str
    number: int | None
    chosen: bool
    reason: str
    axial: bool
    localizer: bool
    origin: str
    kernel: str
    image: str
    syntaxes: tuple[str, ...]
    slices: int
    rows: int
    columns: int
    spacing: tuple[float, ...]
    gaps: tuple[float, ...]
    tilt_degrees: float
    geometry: tuple[str, ...]


@dataclass(frozen=True)
class Problem:
    """All objects or frames of a study that are refused for one kind of reason."""

    kind: str
    count: int
    key: str
    detail: str


@dataclass(frozen=True)
class StudyView:
    """One study.

    Parameters
    ----------
    study : str
        As the source names it.
    outcome : str
        ``readable``, or the kind of the StudyError or RunError that a run would end in.
    reason : str
        Why it is refused; empty where it is readable.
    objects, size : int
        Number of objects, and their bytes.
    volume_bytes : int
        Of the volume in memory; 0 where there is none.
    series : tuple of SeriesView
    problems, unused : tuple of Problem
        What would be refused, and what would not be used; by kind, with the first object of each.
    """

    study: str
    outcome: str
    reason: str
    objects: int
    size: int
    volume_bytes: int
    series: tuple[SeriesView, ...]
    problems: tuple[Problem, ...]
    unused: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class Inspection:
    """What was seen of a source.

    Parameters
    ----------
    studies : tuple of StudyView
    layout : {"study", "scan"}
        How they were told apart; a run must be given the same.
    """

    studies: tuple[StudyView, ...]
    layout: Layout

    @property
    def readable(self) -> int:
        """Number of studies that give a volume."""
        return sum(study.outcome == READABLE for study in self.studies)

    def to_json(self) -> dict[str, Any]:
        """All of it as plain JSON values."""
        return {
            "layout": self.layout,
            "studies": [asdict(study) for study in self.studies],
            "listed": len(self.studies),
            "readable": self.readable,
        }


def inspect_studies(
    studies: Iterable[tuple[str, Sequence[tuple[str, int]]]],
    head: Head,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    layout: Layout = "study",
    series: str = "",
) -> Inspection:
    """Look at the headers of a source.

    Parameters
    ----------
    studies : iterable of (str, sequence of (str, int))
        Each study's name, and the key and size in bytes of each of its objects.
    head : callable
        ``head(key, n)`` gives the first n bytes of an object, or fewer where it is shorter. Called
        from several threads; a RunError that it raises is the study's outcome.
    limits : Limits
    layout : {"study", "scan"}
        How the studies were told apart.
    series : str
        The series to read, as `pipeline.config.StudyConfig.series` names it.

    Returns
    -------
    Inspection
        Studies in the order given.
    """
    with ThreadPoolExecutor(REQUESTS) as pool:

        def read(entry: tuple[str, int]) -> tuple[str, bytes]:
            return entry[0], _read_head(head, *entry, limits)

        def look(study: str, objects: Sequence[tuple[str, int]]) -> StudyView:
            try:
                return inspect_study(study, objects, pool.map(read, objects), limits, series)
            except RunError as error:
                return _view_unreadable(study, objects, error)

        return Inspection(tuple(look(study, objects) for study, objects in studies), layout)


def inspect_study(
    study: str,
    objects: Sequence[tuple[str, int]],
    heads: Iterable[tuple[str, bytes]],
    limits: Limits,
    series: str = "",
) -> StudyView:
    """Look at one study, given the heads of its objects."""
    sizes, rule = dict(objects), SeriesRule(series)
    found = read_objects(heads, limits)
    stack, outcome, reason = None, READABLE, ""
    refused: Sequence[SliceError] = found.refused
    unused: Sequence[UnusedObject] = found.unused
    try:
        choice = choose_stack(found, limits, rule)
        stack, unused = choice.stack, choice.unused
        refused = [*choice.refused, *_foresee_all(choice.stack, sizes)]
        _check_study(study, choice.stack, refused)
    except NoVolumeError as error:
        outcome, reason = error.kind, error.detail
        refused = [e for e in error.refused if e.kind != "not-in-stack"]
        unused = error.unused
    except StudyError as error:
        outcome, reason = error.kind, error.detail
    parts = find_parts(found.frames)
    _, reasons = choose_part(parts, rule)
    return StudyView(
        study=as_text(study),
        outcome=outcome,
        reason=reason,
        objects=len(objects),
        size=sum(sizes.values()),
        volume_bytes=2 * int(np.prod(stack.shape)) if stack else 0,
        series=tuple(_view_series(part, stack, reasons[index]) for index, part in enumerate(parts)),
        problems=_gather((e.kind, e.key, e.detail) for e in refused),
        unused=_gather((e.kind, e.key, e.detail) for e in unused),
    )


def _view_unreadable(study: str, objects: Sequence[tuple[str, int]], error: RunError) -> StudyView:
    """A study of which an object cannot be read at all."""
    reason = f"{as_text(error.key)}: {error.detail}"
    size = sum(size for _, size in objects)
    return StudyView(as_text(study), error.kind, reason, len(objects), size, 0, (), ())


def _foresee_all(stack: Stack, sizes: Mapping[str, int]) -> list[SliceError]:
    """The refusals of a stack's frames that their headers tell; of each place one may stay."""
    refused = []
    for place in stack.places:
        errors = [_foresee(candidate, sizes.get(candidate.header.key, 0)) for candidate in place]
        refused += [error for error in errors if error]
        whole = [c for c, error in zip(place, errors, strict=True) if not error]
        why = f"one of {len(whole)} slices at {place[0].plane.position} mm"
        refused += [
            SliceError("duplicate-slice", where(c) + why, key=c.header.key) for c in whole[1:]
        ]
    return refused


def _check_study(study: str, stack: Stack, refused: Sequence[SliceError]) -> None:
    """Refuse what a run would refuse as a whole, with its own settings left as they are."""
    headers = [candidate.header for place in stack.places for candidate in place]
    check_identity(study, max(header.study for header in headers))
    outcomes = {header.key: STORED for header in headers}
    outcomes |= {error.key: error.kind for error in refused}
    check_share(outcomes.values(), StudyConfig().max_bad_share)


def _read_head(head: Head, key: str, size: int, limits: Limits) -> bytes:
    """As much of an object as holds its header."""
    count = HEAD_BYTES
    while True:
        data = head(key, min(count, size))
        try:
            read_header(key, data, limits)
        except SliceError as error:
            if count < size and error.kind in ("truncated", "header-invalid"):
                count *= 16
                continue
        return data


def _foresee(candidate: Candidate, size: int) -> SliceError | None:
    """What the header already tells of a frame that will be refused when it is decoded."""
    header, plane = candidate.header, candidate.plane
    try:
        check_rescale(header.key, plane.slope, plane.intercept)
        check_length(header)
    except SliceError as error:
        return error
    start, length = header.elements.pixel_start, header.elements.pixel_length
    is_plain = header.syntax in NATIVE - {DEFLATED}
    if is_plain and start is not None and length is not None and start + length > size:
        found = max(0, size - start)
        return SliceError("truncated", f"{found} of {length} bytes of pixels", key=header.key)
    return None


def _view_series(part: SeriesPart, chosen: Stack | None, reason: str) -> SeriesView:
    header, plane, stack = part.frames[0].header, part.frames[0].plane, part.stack
    geometry = None
    gaps: tuple[float, ...] = ()
    if stack is not None:
        kept = [place[0] for place in stack.places]
        duplicates = any(len(place) > 1 for place in stack.places)
        geometry = make_geometry(stack, kept, duplicates=duplicates)
        steps = np.abs(np.diff(geometry.offsets))
        gaps = (float(steps.min()), float(np.median(steps)), float(steps.max()))
    return SeriesView(
        series=part.series,
        number=part.facts.number,
        chosen=chosen is not None and any(part.frames[0] in place for place in chosen.places),
        reason=reason,
        axial=part.axial,
        localizer=part.facts.origin is Origin.SCOUT,
        origin=part.facts.origin.name.lower(),
        kernel=part.facts.sharpness.name.lower(),
        image=CT_CLASSES[header.sop_class],
        syntaxes=tuple(sorted({candidate.header.syntax for candidate in part.frames})),
        slices=part.slices,
        rows=header.rows,
        columns=header.columns,
        spacing=geometry.spacing if geometry else plane.spacing,
        gaps=gaps,
        tilt_degrees=geometry.tilt_degrees if geometry else 0.0,
        geometry=geometry.classes if geometry else (),
    )


def _gather(entries: Iterable[tuple[str, str, str]]) -> tuple[Problem, ...]:
    """Kind, key and detail of each object, by kind."""
    by_kind: dict[str, list[tuple[str, str]]] = {}
    for kind, key, detail in sorted(entries):
        by_kind.setdefault(kind, []).append((key, detail))
    return tuple(
        Problem(kind, len(found), as_text(found[0][0]), found[0][1])
        for kind, found in by_kind.items()
    )
