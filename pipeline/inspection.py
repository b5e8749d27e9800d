"""Predict the outcome of a run from the headers of a source, without decoding or writing.

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
"""Outcome of a study with a volume; any other outcome is the kind of an error."""
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
        Whether the stack would be read.
    reason : str
        Reason why it would be read or not.
    axial, localizer : bool
        Whether the frames are near-axial, and whether they are scouts.
    origin, kernel : str
        Origin of the images (``original``, ``derived``, ``reformat``, ``projection``, ...), and
        sharpness of their kernel (``sharp``, ``medium``, ``soft``, ``unknown``).
    image : str
        Kind of image, from the SOP class.
    syntaxes : tuple of str
        Transfer syntax UIDs.
    slices : int
        Number of positions; several frames at one position count once.
    rows, columns : int
        Matrix of the stored slices.
    spacing : tuple of float
        Spacing in mm, canonical (z, y, x); (y, x) as stored if the group is no axial stack.
    gaps : tuple of float
        Minimum, median and maximum distance of neighbours along the normal, mm.
    tilt_degrees : float
    geometry : tuple of str
        Geometry classes. Empty, like `gaps`, if the group is no axial stack of at least two slices.
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
    """All objects or frames of a study that are refused or unused for the same kind of reason."""

    kind: str
    count: int
    key: str
    detail: str


@dataclass(frozen=True)
class StudyView:
    """Inspection of one study.

    Parameters
    ----------
    study : str
        Name of the study in the source.
    outcome : str
        ``readable``, or the kind of the StudyError or RunError that a run would raise.
    reason : str
        Reason why the study is refused; empty if it is readable.
    objects, size : int
        Number of objects, and their total size in bytes.
    volume_bytes : int
        Size of the volume in memory, in bytes; 0 if there is none.
    series : tuple of SeriesView
    problems, unused : tuple of Problem
        Objects that would be refused or unused, by kind, with the first object of each kind.
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
    """Inspection of a source.

    Parameters
    ----------
    studies : tuple of StudyView
    layout : {"study", "scan"}
        How files are grouped into studies; a run must use the same layout.
    """

    studies: tuple[StudyView, ...]
    layout: Layout

    @property
    def readable(self) -> int:
        """Number of studies with a volume."""
        return sum(study.outcome == READABLE for study in self.studies)

    def to_json(self) -> dict[str, Any]:
        """Return the inspection as plain JSON values."""
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
    """Inspect the studies of a source by their headers.

    Parameters
    ----------
    studies : iterable of (str, sequence of (str, int))
        Name of each study, with the key and size in bytes of each object.
    head : callable
        ``head(key, n)`` returns the first n bytes of an object, or fewer if it is shorter. Called
        from several threads; a RunError that it raises becomes the outcome of the study.
    limits : Limits
    layout : {"study", "scan"}
        How files were grouped into studies.
    series : str
        Series to read, in the format of `pipeline.config.StudyConfig.series`.

    Returns
    -------
    Inspection
        Inspection with the studies in the given order.
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
    """Inspect one study, given the first bytes of its objects."""
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
    """Make the view of a study with an object that cannot be fetched."""
    reason = f"{as_text(error.key)}: {error.detail}"
    size = sum(size for _, size in objects)
    return StudyView(as_text(study), error.kind, reason, len(objects), size, 0, (), ())


def _foresee_all(stack: Stack, sizes: Mapping[str, int]) -> list[SliceError]:
    """Predict refused frames of a stack from headers; each position keeps one frame."""
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
    """Apply the checks of whole studies, with the default settings of a run."""
    headers = [candidate.header for place in stack.places for candidate in place]
    check_identity(study, max(header.study for header in headers))
    outcomes = {header.key: STORED for header in headers}
    outcomes |= {error.key: error.kind for error in refused}
    check_share(outcomes.values(), StudyConfig().max_bad_share)


def _read_head(head: Head, key: str, size: int, limits: Limits) -> bytes:
    """Read enough of an object to contain its header."""
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
    """Predict the error of decoding a frame from its header; None if there is none."""
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
    """Group entries (kind, key, detail) by kind."""
    by_kind: dict[str, list[tuple[str, str]]] = {}
    for kind, key, detail in sorted(entries):
        by_kind.setdefault(kind, []).append((key, detail))
    return tuple(
        Problem(kind, len(found), as_text(found[0][0]), found[0][1])
        for kind, found in by_kind.items()
    )
