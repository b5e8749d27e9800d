"""Sort the objects of a study into possible slices, unused objects and refused objects.

A refused object may be a damaged slice; an unused one is no slice (a report, a dose page, a file of
the operating system). Only headers are read. `pipeline.dicom.series` chooses the stack among the
frames, and `pipeline.dicom.volume` reads the pixels.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from pipeline.dicom.elements import Elements, read_elements
from pipeline.dicom.headers import CT_CLASSES, Header, check_object, class_of, make_header
from pipeline.dicom.limits import Limits
from pipeline.dicom.pixeldata import check_pixels
from pipeline.dicom.planes import Plane, read_planes
from pipeline.source.strangers import find_format, is_junk, is_named_slice
from storage_schemas.errors import SliceError, StudyError
from storage_schemas.outcomes import UNUSED_KINDS

_LIMITS = Limits()  # made once: checking the settings takes longer than reading a header
_STORAGE = "1.2.840.10008.5.1.4.1.1."
_DIRECTORY = "1.2.840.10008.1.3.10"
_SECONDARY_CAPTURE = f"{_STORAGE}7"
_COLOURS = frozenset({
    "RGB", "PALETTE COLOR", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Candidate:
    """One readable frame that may be a slice."""

    header: Header
    frame: int
    plane: Plane


@dataclass(frozen=True, slots=True)
class UnusedObject:
    """An object or frame that does not belong to the stack, without being an error.

    Parameters
    ----------
    key : str
        Key of the object in the source.
    kind : str
        Kind of unused object, one of `storage_schemas.outcomes.UNUSED_KINDS`.
    detail : str
        Reason in one line, without text from the header.
    """

    key: str
    kind: str
    detail: str

    def __post_init__(self) -> None:
        if self.kind not in UNUSED_KINDS:
            raise ValueError(f"no kind of unused objects: {self.kind!r}")


@dataclass
class StudyObjects:
    """The objects of one study, sorted by their headers.

    Parameters
    ----------
    frames : list of Candidate
        Frames that may be slices.
    refused : list of SliceError
        Errors of objects or frames that may be slices and cannot be read.
    unused : list of UnusedObject
    elements : dict of str to Elements
        Readable elements of refused objects, by key.
    """

    frames: list[Candidate] = field(default_factory=list)
    refused: list[SliceError] = field(default_factory=list)
    unused: list[UnusedObject] = field(default_factory=list)
    elements: dict[str, Elements] = field(default_factory=dict, repr=False)


class NoVolumeError(StudyError):
    """A study has no volume; holds the refused and unused objects."""

    refused: tuple[SliceError, ...] = ()
    unused: tuple[UnusedObject, ...] = ()


def read_objects(objects: Iterable[tuple[str, bytes]], limits: Limits) -> StudyObjects:
    """Read the headers of all objects and sort the objects.

    Parameters
    ----------
    objects : iterable of (str, bytes)
        Key of each object, and its content or first bytes.
    limits : Limits
    """
    found = StudyObjects()
    seen: dict[object, list[bytes]] = {}
    for key, data in objects:
        if is_junk(key):
            found.unused.append(UnusedObject(key, "junk", "named as system files are"))
        else:
            _sort_object(key, data, limits, found, seen)
    return found


def _sort_object(
    key: str,
    data: bytes,
    limits: Limits,
    found: StudyObjects,
    seen: dict[object, list[bytes]],
) -> None:
    elements = None
    try:
        elements = read_elements(key, data, limits)
        if _is_copy(elements, seen):
            found.unused.append(UnusedObject(key, "copy", "the same bytes as another object"))
            return
        if other := _other_object(key, elements):
            found.unused.append(other)
            return
        header = make_header(key, elements)
        if _is_colour(header):
            why = f"{header.samples} samples a pixel, {header.photometric}"
            found.unused.append(UnusedObject(key, "page", why))
            return
        check_object(header)
        check_pixels(header, limits)
        planes = read_planes(header)
    except SliceError as error:
        if error.kind == "not-dicom" and (name := find_format(key, data)):
            found.unused.append(UnusedObject(key, "other-file", name))
            return
        if elements is not None:
            found.elements[key] = elements
        found.refused.append(error)
        return
    for frame, plane in enumerate(planes):
        if isinstance(plane, SliceError):
            found.refused.append(plane)
            found.elements[key] = header.elements
        else:
            found.frames.append(Candidate(header, frame, plane))


def _is_colour(header: Header) -> bool:
    """Whether a header consistently describes a colour image; damaged headers are not."""
    samples = 1 if header.photometric == "PALETTE COLOR" else 3
    return header.photometric in _COLOURS and header.samples == samples


def _is_copy(elements: Elements, seen: dict[object, list[bytes]]) -> bool:
    """Whether an earlier object has the same bytes; the first in the listing is kept."""
    names = ("sop_instance", "position", "instance_number")
    name = (len(elements.data), *(elements.values.get(name) for name in names))
    others = seen.setdefault(name, [])
    if any(elements.data == other for other in others):
        return True
    others.append(elements.data)
    return False


def _other_object(key: str, elements: Elements) -> UnusedObject | None:
    """Classify an object that is no CT image by its SOP class; None if it may be one."""
    sop_class = class_of(key, elements)
    if not sop_class or sop_class in CT_CLASSES:
        return None
    is_registered = sop_class == _DIRECTORY or (
        sop_class.startswith(_STORAGE) and len(sop_class) > len(_STORAGE)
    )
    if elements.pixel_start is None and not elements.whole and not is_registered:
        return None  # the object may be truncated within its SOP class UID
    if sop_class == _DIRECTORY:
        return UnusedObject(key, "directory", f"SOP class {sop_class}")
    if sop_class.startswith(_SECONDARY_CAPTURE):
        return UnusedObject(key, "page", f"SOP class {sop_class}")
    kind = "document" if elements.pixel_start is None else "other-modality"
    return UnusedObject(key, kind, f"SOP class {sop_class}")


def may_be_slice(key: str, head: bytes) -> bool:
    """Whether a file may be a CT slice, possibly damaged, by its name and first bytes."""
    if is_junk(key):
        return False
    if head[128:132] != b"DICM":
        return is_named_slice(key)
    try:
        elements = read_elements(key, head, _LIMITS)
        return _other_object(key, elements) is None
    except SliceError:
        return True


def where(candidate: Candidate) -> str:
    """Prefix with the frame number for errors; empty for single-frame objects."""
    return f"frame {candidate.frame}: " if candidate.header.frames > 1 else ""


def leave_unused(candidate: Candidate, kind: str, why: str) -> UnusedObject:
    """Make the entry of a readable frame that is not used, without being an error."""
    return UnusedObject(candidate.header.key, kind, where(candidate) + why)


def leave_out(candidate: Candidate, why: str) -> SliceError:
    """Make the error of a readable frame that should be in the volume but does not fit."""
    return SliceError("not-in-stack", where(candidate) + why, key=candidate.header.key)


def no_volume(
    kind: str, detail: str, refused: Iterable[SliceError], unused: Iterable[UnusedObject]
) -> NoVolumeError:
    """Make the error of a study without a volume."""
    error = NoVolumeError(kind, detail)
    error.refused, error.unused = sort_refused(refused), sort_unused(unused)
    return error


def sort_refused(refused: Iterable[SliceError]) -> tuple[SliceError, ...]:
    """Sort errors, independently of the order of the objects."""
    return tuple(sorted(refused, key=lambda error: (error.key, error.kind, error.detail)))


def sort_unused(unused: Iterable[UnusedObject]) -> tuple[UnusedObject, ...]:
    """Sort unused objects, independently of their original order."""
    return tuple(sorted(unused, key=lambda entry: (entry.key, entry.kind, entry.detail)))
