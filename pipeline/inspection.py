"""What the pipeline would make of a source, from the headers alone: nothing is decoded or written.

`inspect_studies` looks, `render` prints what it saw, `Inspection.to_json` says it to programs.
Names and dates of patients are never part of it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from pydicom.uid import UID
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.config import Layout, StudyConfig
from pipeline.dicom.elements import DEFLATED
from pipeline.dicom.headers import CT_CLASSES, read_header
from pipeline.dicom.hounsfield import check_rescale
from pipeline.dicom.limits import Limits
from pipeline.dicom.pixeldata import NATIVE, check_length
from pipeline.dicom.selection import (
    choose_stack,
    read_candidates,
    where,
)
from pipeline.dicom.stack import (
    Candidate,
    Stack,
    find_orientation,
    find_stack,
    group_frames,
    make_geometry,
)
from pipeline.source.listing import HEAD_BYTES
from pipeline.study_rules import check_identity, check_share
from presentation.progress import result_console
from storage_schemas.errors import RunError, SliceError, StudyError
from storage_schemas.objects import REQUESTS, as_text
from storage_schemas.records import STORED
from storage_schemas.study_key import StudyKey

READABLE = "readable"
"""The outcome of a study that gives a volume; any other is the kind that refuses it."""
Head = Callable[[str, int], bytes]


@dataclass(frozen=True)
class SeriesView:
    """One group of frames that could form a stack: same series, size, spacing and orientation.

    Parameters
    ----------
    series : str
        SeriesInstanceUID; may be empty.
    chosen : bool
        Whether this is the stack that would be read.
    axial, localizer : bool
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
    chosen: bool
    axial: bool
    localizer: bool
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
    problems : tuple of Problem
        By kind, with the first object of each.
    """

    study: str
    outcome: str
    reason: str
    objects: int
    size: int
    volume_bytes: int
    series: tuple[SeriesView, ...]
    problems: tuple[Problem, ...]


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
                return inspect_study(study, objects, pool.map(read, objects), limits)
            except RunError as error:
                return _view_unreadable(study, objects, error)

        return Inspection(tuple(look(study, objects) for study, objects in studies), layout)


def inspect_study(
    study: str,
    objects: Sequence[tuple[str, int]],
    heads: Iterable[tuple[str, bytes]],
    limits: Limits,
) -> StudyView:
    """Look at one study, given the heads of its objects."""
    sizes = dict(objects)
    found, refused = read_candidates(heads, limits)
    stack, outcome, reason = None, READABLE, ""
    try:
        stack = choose_stack(found, refused, limits)
        refused += _foresee_all(stack, sizes)
        _check_study(study, stack, refused)
    except StudyError as error:
        outcome, reason = error.kind, error.detail
    return StudyView(
        study=as_text(study),
        outcome=outcome,
        reason=reason,
        objects=len(objects),
        size=sum(sizes.values()),
        volume_bytes=2 * int(np.prod(stack.shape)) if stack else 0,
        series=tuple(_view_series(group, stack) for group in group_frames(found)),
        problems=_gather(refused),
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
    check_identity(StudyKey(study), max(header.study for header in headers))
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


def _view_series(group: Sequence[Candidate], chosen: Stack | None) -> SeriesView:
    header, plane = group[0].header, group[0].plane
    stack = find_stack(group)
    geometry = None
    gaps: tuple[float, ...] = ()
    if stack is not None:
        kept = [place[0] for place in stack.places]
        duplicates = any(len(place) > 1 for place in stack.places)
        geometry = make_geometry(stack, kept, duplicates=duplicates)
        steps = np.abs(np.diff(geometry.offsets))
        gaps = (float(steps.min()), float(np.median(steps)), float(steps.max()))
    return SeriesView(
        series=header.series,
        chosen=chosen is not None and any(group[0] in place for place in chosen.places),
        axial=find_orientation(plane.row_direction, plane.column_direction) is not None,
        localizer=plane.localizer,
        image=CT_CLASSES[header.sop_class],
        syntaxes=tuple(sorted({candidate.header.syntax for candidate in group})),
        slices=len(stack.places) if stack else len(group),
        rows=header.rows,
        columns=header.columns,
        spacing=geometry.spacing if geometry else plane.spacing,
        gaps=gaps,
        tilt_degrees=geometry.tilt_degrees if geometry else 0.0,
        geometry=geometry.classes if geometry else (),
    )


def _gather(refused: Iterable[SliceError]) -> tuple[Problem, ...]:
    by_kind: dict[str, list[SliceError]] = {}
    for error in sorted(refused, key=lambda e: (e.kind, e.key, e.detail)):
        by_kind.setdefault(error.kind, []).append(error)
    return tuple(
        Problem(kind, len(errors), as_text(errors[0].key), errors[0].detail)
        for kind, errors in by_kind.items()
    )


def render(inspection: Inspection, console: Console | None = None) -> None:
    """Print an inspection for people."""
    console = console or result_console()
    for study in inspection.studies:
        _render_study(study, console)


def _render_study(study: StudyView, console: Console) -> None:
    verdict = "[green]readable[/]" if study.outcome == READABLE else f"[red]{study.outcome}[/]"
    console.print(
        f"[bold]{escape(study.study)}[/]  {verdict} {escape(study.reason)}"
        f"  {study.objects} objects, {study.size / 1e6:.1f} MB"
        f" -> {study.volume_bytes / 1e6:.1f} MB of voxels"
    )
    series = Table("", "series", "image", "slices", "size", "spacing mm", "gaps mm", "tilt",
                   "geometry", "syntax", box=None, pad_edge=False)  # fmt: skip
    for view in study.series:
        series.add_row(
            ">" if view.chosen else "",
            escape(view.series) or "(no UID)",
            view.image,
            str(view.slices),
            f"{view.rows}x{view.columns}",
            " ".join(f"{mm:.3g}" for mm in view.spacing),
            " ".join(f"{mm:.3g}" for mm in view.gaps) if view.geometry else "",
            f"{view.tilt_degrees:.1f}" if view.geometry else "",
            _name_geometry(view),
            " ".join(UID(syntax).keyword or escape(syntax) for syntax in view.syntaxes),
        )
    if study.series:
        console.print(series)
    for problem in study.problems:
        where = escape(f"{problem.key}: {problem.detail}")
        console.print(f"  [yellow]{problem.kind}[/] x {problem.count}, first {where}")


def _name_geometry(view: SeriesView) -> str:
    if view.geometry:
        return "+".join(view.geometry)
    if view.localizer:
        return "localizer"
    return "one slice" if view.axial else "not axial"
