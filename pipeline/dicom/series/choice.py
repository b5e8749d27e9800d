"""Choose the stack to read, and classify every other frame as unused or refused.

A frame outside the stack is unused if it belongs elsewhere (another series, another phase, a
scout). It is refused as ``not-in-stack`` if it is a slice of the chosen series that the stack
lacks. Unreadable objects are refused if they belong, or may belong, to the chosen series.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.dicom.elements import Elements
from pipeline.dicom.headers import decode_text
from pipeline.dicom.limits import Limits
from pipeline.dicom.selection import (
    Candidate,
    NoVolumeError,
    StudyObjects,
    UnusedObject,
    leave_out,
    leave_unused,
    no_volume,
)
from pipeline.dicom.series.facts import series_of, settings_of
from pipeline.dicom.series.image_type import Origin, find_origin
from pipeline.dicom.series.parts import SeriesPart, find_parts
from pipeline.dicom.series.preference import SeriesRule, choose_part
from pipeline.dicom.series.regions import find_region
from pipeline.dicom.stack import Stack, find_normal
from storage_schemas.errors import SliceError
from storage_schemas.records import SeriesRecord

_UNUSED_BY_ORIGIN = {
    Origin.SCOUT: "scout",
    Origin.PAGE: "page",
    Origin.PROJECTION: "projection",
    Origin.TRACKING: "tracking",
}


@dataclass(frozen=True)
class Choice:
    """The stack to read, and the refused and unused objects.

    Parameters
    ----------
    stack : Stack
    chosen : SeriesPart
    parts : tuple of SeriesPart
        All parts of the study, including `chosen`.
    reasons : tuple of str
        Reason why each part is read or not.
    refused : list of SliceError
        Errors of refused objects and frames; decoding adds more.
    unused : list of UnusedObject
    """

    stack: Stack
    chosen: SeriesPart
    parts: tuple[SeriesPart, ...]
    reasons: tuple[str, ...]
    refused: list[SliceError] = field(repr=False)
    unused: list[UnusedObject] = field(repr=False)


def choose_stack(
    objects: StudyObjects,
    limits: Limits,
    rule: SeriesRule = SeriesRule(),  # noqa: B008 - frozen
) -> Choice:
    """Choose the stack to read.

    Parameters
    ----------
    objects : StudyObjects
        Sorted objects of the study; not modified.
    limits : Limits
    rule : SeriesRule

    Raises
    ------
    NoVolumeError
        ``study-mixed``, ``no-dicom``, ``no-ct``, ``headers-refused``, ``no-axial-stack``,
        ``one-position``, ``series-not-found``, ``series-refused`` or
        ``volume-over-budget``.
    """
    refused, unused = list(objects.refused), list(objects.unused)
    frames = objects.frames

    def fail(kind: str, detail: str, *, out: str = "of no stack") -> NoVolumeError:
        mine = [leave_out(frame, out) for frame in frames]
        return no_volume(kind, detail, [*refused, *mine], unused)

    if len(studies := {frame.header.study for frame in frames} - {""}) > 1:
        raise fail("study-mixed", f"{len(studies)} StudyInstanceUIDs")
    if not frames:
        raise fail(*_without_frames(objects))
    parts = find_parts(frames)
    chosen, reasons = choose_part(parts, rule)
    if chosen is None or chosen.stack is None:
        raise fail(*_without_stack(parts, reasons, rule), out="of no stack of two slices or more")
    stack = chosen.stack
    if not rule.pattern and (why := _find_preferred(objects, chosen)):
        raise fail("series-refused", why)
    refused, more = _settle_refused(objects, chosen)
    unused += more
    for index, part in enumerate(parts):
        if part is not chosen:
            _leave_part(part, chosen, reasons[index], refused, unused)
        unused += [
            leave_unused(frame, "overlap", "at a position that its neighbour acquisition shows")
            for frame in part.frame_set.overlap
        ]
    slices, rows, columns = stack.shape
    size = 2 * slices * rows * columns
    if size > limits.volume_bytes:
        refused += [leave_out(c, "of too large a stack") for p in stack.places for c in p]
        why = f"{stack.shape} needs {size} bytes against {limits.volume_bytes}"
        raise no_volume("volume-over-budget", why, refused, unused)
    ordered = tuple(reasons[index] for index in range(len(parts)))
    return Choice(stack, chosen, tuple(parts), ordered, refused, unused)


def _without_frames(objects: StudyObjects) -> tuple[str, str]:
    """Kind and reason of the error of a study without a readable CT frame."""
    kinds = Counter(error.kind for error in objects.refused)
    if kinds.total() > kinds["not-dicom"]:
        (kind, count), *_ = kinds.most_common(1)
        return "headers-refused", f"{count} of {kinds.total()} objects are {kind}"
    others = Counter(entry.kind for entry in objects.unused)
    dicom = {k: n for k, n in others.items() if k not in ("junk", "other-file", "copy")}
    if dicom:
        return "no-ct", ", ".join(f"{n} {kind}" for kind, n in sorted(dicom.items()))
    formats = Counter(e.detail for e in objects.unused if e.kind == "other-file")
    found = [f"{n} {name}" for name, n in formats.most_common(3)]
    found += [f"{kinds.total()} unreadable"] if kinds else []
    found += [f"{others['junk']} system files"] if others["junk"] else []
    return "no-dicom", ", ".join(found) or "no object"


def _without_stack(
    parts: Sequence[SeriesPart], reasons: dict[int, str], rule: SeriesRule
) -> tuple[str, str]:
    """Kind and reason of the error of a study without a readable part."""
    if rule.pattern and not any(rule.matches(part) for part in parts):
        known = ", ".join(sorted({f"{p.facts.number} ({p.series})" for p in parts}))
        return "series-not-found", f"no series is {rule.pattern}; the study has {known}"
    why = Counter[str]()
    for index, part in enumerate(parts):
        why[reasons[index]] += len(part.frames)
    said = "; ".join(f"{count} frames: {reason}" for reason, count in sorted(why.items()))
    at_one = [p.axial and p.stack is None and p.facts.origin < Origin.SCOUT for p in parts]
    return ("one-position" if any(at_one) else "no-axial-stack"), said


def _facts_of(elements: Elements) -> tuple[Origin, int]:
    """Origin and region of a refused object, from its readable elements."""
    values = elements.values
    text = {
        name: decode_text(values.get(name, b""))
        for name in ("image_type", "series_description", "protocol", "body_part")
    }
    origin = find_origin(text["image_type"], text["series_description"])
    return origin, find_region(text["series_description"], text["protocol"], text["body_part"])


def _find_preferred(objects: StudyObjects, chosen: SeriesPart) -> str:
    """Return the reason to refuse the study if a better series is unreadable; else empty."""
    bad: dict[str, list[SliceError]] = {}
    for error in objects.refused:
        elements = objects.elements.get(error.key)
        series = series_of(elements.values) if elements else None
        if elements is None or series is None or series == chosen.series:
            continue
        origin, region = _facts_of(elements)
        better = (origin, region) < (chosen.facts.origin, chosen.facts.region)
        if better and origin < Origin.REFORMAT:
            bad.setdefault(series, []).append(error)
    whole = Counter(frame.header.series for frame in objects.frames)
    for series, errors in sorted(bad.items()):
        # A better series with few refused objects would have been chosen.
        if len(errors) > whole[series] and len(errors) > 1:
            kind, count = Counter(e.kind for e in errors).most_common(1)[0]
            return f"series {series} would be read, but {count} of its objects are {kind}"
    return ""


def _settle_refused(
    objects: StudyObjects, chosen: SeriesPart
) -> tuple[list[SliceError], list[UnusedObject]]:
    """Keep errors of possible slices of the chosen stack; other objects are unused."""
    assert chosen.stack is not None
    refused, unused = [], []
    for error in objects.refused:
        elements = objects.elements.get(error.key)
        series = series_of(elements.values) if elements else None
        if elements is None or series is None:
            refused.append(error)
        elif series != chosen.series:
            unused.append(UnusedObject(error.key, "other-series", f"and {error.kind}"))
        elif kind := _no_slice(elements, chosen):
            unused.append(UnusedObject(error.key, kind, f"and {error.kind}"))
        else:
            refused.append(error)
    return refused, unused


def _no_slice(elements: Elements, chosen: SeriesPart) -> str:
    """Kind of an unreadable object of the chosen series if it is no slice of it; else empty."""
    origin, _ = _facts_of(elements)
    if origin in _UNUSED_BY_ORIGIN:
        return _UNUSED_BY_ORIGIN[origin]
    derived = origin > Origin.ORIGINAL and chosen.facts.origin is Origin.ORIGINAL
    return "page" if derived and not elements.values.get("position") else ""


def _leave_part(
    part: SeriesPart,
    chosen: SeriesPart,
    reason: str,
    refused: list[SliceError],
    unused: list[UnusedObject],
) -> None:
    """Classify each frame of a part that was not chosen."""
    origin = part.facts.origin
    for frame in part.frames:
        if origin in _UNUSED_BY_ORIGIN:
            unused.append(leave_unused(frame, _UNUSED_BY_ORIGIN[origin], reason))
        elif part.series != chosen.series:
            unused.append(leave_unused(frame, "other-series", reason))
        elif part.frame_set.tracking:
            unused.append(leave_unused(frame, "tracking", "one of several at one position"))
        elif not part.axial:
            unused.append(leave_unused(frame, "not-axial", reason))
        elif _is_lost(frame, part, chosen):
            refused.append(leave_out(frame, "a slice of the series that does not fit the stack"))
        else:
            unused.append(leave_unused(frame, "other-set", reason))


def _is_lost(frame: Candidate, part: SeriesPart, chosen: SeriesPart) -> bool:
    """Whether the stack lacks a slice at this position, and the frame is of no other set."""
    assert chosen.stack is not None
    stack = chosen.stack
    if part.grid is chosen.grid and part.facts.origin is chosen.facts.origin:
        return False  # another acquisition or phase
    if part.facts.origin > Origin.DERIVED or settings_of(frame) != settings_of(chosen.frames[0]):
        return False
    normal = find_normal(stack.row_direction, stack.column_direction, stack.orientation)
    offset = float(np.asarray(frame.plane.position) @ normal)
    nearest = float(np.abs(np.asarray(stack.offsets) - offset).min())
    return nearest > 0.75 * chosen.step


def describe_parts(choice: Choice) -> tuple[SeriesRecord, ...]:
    """Describe each part and why it was chosen or not, without frames and header texts."""
    return tuple(
        SeriesRecord(
            series=part.series,
            number=part.facts.number,
            objects=len({frame.header.key for frame in part.frames}),
            slices=part.slices,
            image=part.facts.origin.name.lower(),
            kernel=part.facts.sharpness.name.lower(),
            chosen=part is choice.chosen,
            reason=reason,
        )
        for part, reason in zip(choice.parts, choice.reasons, strict=True)
    )
