"""Which objects of a study could be slices, and which of them form the stack to read.

Every frame is accounted for: it is in the stack, or there is a refusal with its kind. Headers only:
reading the pixels is `pipeline.dicom.volume`, and what there is to know without them
`pipeline.inspection`.
"""

from collections.abc import Iterable

from pipeline.dicom.headers import check_object, read_header
from pipeline.dicom.limits import Limits
from pipeline.dicom.pixeldata import check_pixels
from pipeline.dicom.planes import read_planes
from pipeline.dicom.stack import Candidate, Stack, find_stack
from storage_schemas.errors import SliceError, StudyError


class NoVolumeError(StudyError):
    """A study that gives no volume, with the refusals of its objects."""

    refused: tuple[SliceError, ...] = ()


def read_candidates(
    objects: Iterable[tuple[str, bytes]], limits: Limits
) -> tuple[list[Candidate], list[SliceError]]:
    """Read all headers: the frames that could be slices, and the refusals of the others."""
    candidates: list[Candidate] = []
    refused: list[SliceError] = []
    for key, data in objects:
        try:
            header = read_header(key, data, limits)
            check_object(header)
            check_pixels(header, limits)
            planes = read_planes(header)
        except SliceError as error:
            refused.append(error)
            continue
        for frame, plane in enumerate(planes):
            if isinstance(plane, SliceError):
                refused.append(plane)
            else:
                candidates.append(Candidate(header, frame, plane))
    return candidates, refused


def choose_stack(candidates: list[Candidate], refused: list[SliceError], limits: Limits) -> Stack:
    """Choose the stack to read; the frames outside it are added to `refused`.

    Raises
    ------
    NoVolumeError
        ``study-mixed``, ``no-axial-stack`` or ``volume-over-budget``.
    """
    if len(studies := {c.header.study for c in candidates} - {""}) > 1:
        refused += _outside(candidates, None)
        raise no_volume("study-mixed", f"{len(studies)} StudyInstanceUIDs", refused)
    stack = find_stack(candidates)
    refused += _outside(candidates, stack)
    if stack is None:
        raise no_volume("no-axial-stack", f"{len(candidates)} CT frames", refused)
    slices, rows, columns = stack.shape
    size = 2 * slices * rows * columns
    if size > limits.volume_bytes:
        refused += [leave_out(c, "of too large a stack") for p in stack.places for c in p]
        why = f"{stack.shape} needs {size} bytes against {limits.volume_bytes}"
        raise no_volume("volume-over-budget", why, refused)
    return stack


def _outside(candidates: list[Candidate], stack: Stack | None) -> list[SliceError]:
    inside = {id(c) for place in stack.places for c in place} if stack else set()
    other = (
        "of another stack than the one that is read"
        if stack
        else "of no stack of two slices or more"
    )
    return [
        leave_out(c, "a localizer" if c.plane.localizer else other)
        for c in candidates
        if id(c) not in inside
    ]


def leave_out(candidate: Candidate, why: str) -> SliceError:
    """Make the refusal of a readable frame that is no part of the volume."""
    return SliceError("not-in-stack", where(candidate) + why, key=candidate.header.key)


def where(candidate: Candidate) -> str:
    """The frame of a candidate, for errors; nothing where its object holds one frame."""
    return f"frame {candidate.frame}: " if candidate.header.frames > 1 else ""


def no_volume(kind: str, detail: str, refused: list[SliceError]) -> NoVolumeError:
    """Make the error of a study that gives no volume."""
    error = NoVolumeError(kind, detail)
    error.refused = sort_refused(refused)
    return error


def sort_refused(refused: Iterable[SliceError]) -> tuple[SliceError, ...]:
    """Refusals in an order that does not depend on how the objects came."""
    return tuple(sorted(refused, key=lambda error: (error.key, error.kind, error.detail)))
