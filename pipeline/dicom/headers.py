"""Read an object's header: its identity and its pixel format.

Only unreadable headers are refused; headers of other modalities are read, too. `check_object` then
tests whether the object can belong to a CT stack. Other modules read the geometry of frames
(`pipeline.dicom.planes`), the fields that distinguish series and acquisitions
(`pipeline.dicom.series`), and the pixel data (`pipeline.dicom.pixeldata`).
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydicom.datadict import keyword_for_tag

from pipeline.dicom.elements import SPECIFIC, Elements, read_elements
from pipeline.dicom.limits import Limits
from storage_schemas.errors import SliceError
from storage_schemas.study_key import StudyKey

CT_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.2": "CT",
    "1.2.840.10008.5.1.4.1.1.2.1": "Enhanced CT",
    "1.2.840.10008.5.1.4.1.1.2.2": "Legacy Converted Enhanced CT",
}
"""SOP classes of CT images (PS3.4 B.5)."""

_PHOTOMETRIC = {
    "MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422",
    "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT",
}  # fmt: skip
_LIMITS = Limits()  # made once: checking the settings takes longer than reading a header
_UID = re.compile(r"[0-9.]{0,64}")
_IDENTIFIER = re.compile(r"[A-Za-z0-9._:-]{0,256}")
_INTEGER = re.compile(rb"[+-]?[0-9]{1,10}")
_INT32 = 1 << 31


@dataclass(frozen=True, slots=True)
class Header:
    """One object's header.

    Parameters
    ----------
    key : str
        The object's key in the source.
    elements : Elements
        Raw values that the header was made from.
    sop_class, syntax : str
        UIDs.
    study, series : str
        UIDs; empty if absent. An identifier that is no UID, as some anonymisers write, is replaced
        by a UID derived from its digest, so that the text is never stored.
    patient_id : str
        PatientID; used only for a salted hash.
    instance_number : int or None
        InstanceNumber, a label that orders no slices; None if it is no 32-bit integer (PS3.5 6.2,
        VR IS).
    frames, rows, columns : int
    samples, bits_allocated, bits_stored, high_bit : int
    photometric : str
        PhotometricInterpretation; ``other`` if it is no term of PS3.3 C.7.6.3.1.2.
    signed : bool
        Whether stored values are signed (PixelRepresentation).
    padding : (int, int) or None
        First and last padding value, as 16-bit words; None if there is none.
    burned_in : bool
        Whether BurnedInAnnotation is YES.
    scanner : tuple of str
        Manufacturer, model and kernel.
    """

    key: str
    elements: Elements = field(repr=False)
    sop_class: str
    syntax: str
    study: str
    series: str
    patient_id: str = field(repr=False)
    instance_number: int | None
    frames: int
    rows: int
    columns: int
    samples: int
    photometric: str
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    padding: tuple[int, int] | None
    burned_in: bool
    scanner: tuple[str, str, str]


def read_header(key: str, data: bytes, limits: Limits) -> Header:
    """Read one object's header, without its pixel data.

    Raises
    ------
    SliceError
        ``not-dicom``, ``truncated``, ``header-invalid``, ``inflate-over-budget``, or
        ``sop-class-unsupported`` if the object is no image.
    """
    return make_header(key, read_elements(key, data, limits))


def make_header(key: str, elements: Elements) -> Header:
    """Make the header from an object's elements; raises SliceError as `read_header` does."""
    values = elements.values
    sop_class = _uid(key, values, "sop_class")
    if elements.pixel_start is None:
        _refuse_without_pixels(key, elements, sop_class)
    number = _number_reader(key, elements)
    photometric = decode_text(values.get("photometric", b""))
    return Header(
        key=key,
        elements=elements,
        sop_class=sop_class,
        syntax=_check_uid(key, elements.syntax, "transfer syntax"),
        study=identity(key, values, "study"),
        series=identity(key, values, "series"),
        patient_id=decode_text(values.get("patient_id", b"")),
        instance_number=optional_integer(values.get("instance_number", b"")),
        frames=_frames(key, values),
        rows=number("rows"),
        columns=number("columns"),
        samples=number("samples"),
        photometric=photometric if photometric in _PHOTOMETRIC else "other",
        bits_allocated=number("bits_allocated"),
        bits_stored=number("bits_stored"),
        high_bit=number("high_bit"),
        signed=_signed(key, number("signed")),
        padding=_padding(key, elements),
        burned_in=decode_text(values.get("burned_in", b"")).upper() == "YES",
        scanner=(
            decode_text(values.get("manufacturer", b"")),
            decode_text(values.get("model", b"")),
            decode_text(values.get("kernel", b"")),
        ),
    )


def read_study_uid(head: bytes) -> str | None:
    """Read the StudyInstanceUID from an object's first bytes; None if it cannot be read.

    An identifier that is no UID is returned unchanged; for any other text the result is None.
    """
    try:
        text = decode_text(read_elements("", head, _LIMITS).values.get("study", b""))
    except SliceError:
        return None
    return text if text and _IDENTIFIER.fullmatch(text) else None


def identity(key: str, values: Mapping[str, bytes], name: str) -> str:
    """Return the UID of a study or series; an identifier that is no UID is replaced by one.

    Some anonymisers replace UIDs by digests or names. Such an identifier is replaced by a UID
    derived from its digest (PS3.5 section B.2).

    Raises
    ------
    SliceError
        ``header-invalid`` if the text is no identifier. The message omits the text, which may
        contain patient data.
    """
    text = decode_text(values.get(name, b""))
    if not text or StudyKey.is_valid(text):
        return text
    if not _IDENTIFIER.fullmatch(text):
        raise SliceError("header-invalid", f"the {name} UID is no UID", key=key)
    return StudyKey.from_url(text)


def class_of(key: str, elements: Elements) -> str:
    """Return an object's SOP class UID; raises SliceError ``header-invalid`` if it is no UID."""
    return _uid(key, elements.values, "sop_class")


def check_object(header: Header) -> None:
    """Refuse objects that cannot belong to a CT stack, whatever their pixels are.

    Raises
    ------
    SliceError
        ``sop-class-unsupported`` or ``burned-in-annotation``.
    """
    if header.sop_class not in CT_CLASSES:
        found = header.sop_class or "none"
        raise SliceError("sop-class-unsupported", f"SOP class {found}", key=header.key)
    if header.burned_in:
        raise SliceError("burned-in-annotation", "BurnedInAnnotation is YES", key=header.key)


def optional_integer(raw: bytes) -> int | None:
    """Parse an integer string (VR IS); None if it is invalid or beyond 32 bits (PS3.5 6.2)."""
    text = raw.strip(b"\0 ")
    if not _INTEGER.fullmatch(text):
        return None
    number = int(text)
    return number if -_INT32 <= number < _INT32 else None


def _frames(key: str, values: dict[str, bytes]) -> int:
    raw = values.get("frames", b"").strip(b"\0 ")
    # A number beyond 32 bits is invalid, and exceeds any budget.
    frames = 1 if not raw else optional_integer(raw)
    if frames is None and raw.isdigit():
        raise SliceError("size-over-budget", f"NumberOfFrames has {len(raw)} digits", key=key)
    if frames is None or frames < 1:
        raise SliceError("header-invalid", "NumberOfFrames is no number above 0", key=key)
    return frames


def _signed(key: str, representation: int) -> bool:
    if representation > 1:
        why = f"PixelRepresentation is {representation}, not 0 or 1"
        raise SliceError("header-invalid", why, key=key)
    return representation == 1


def _number_reader(key: str, elements: Elements) -> Callable[[str], int]:
    order: Literal["big", "little"] = "big" if elements.big_endian else "little"

    def number(name: str) -> int:
        raw = elements.values.get(name, b"")
        if len(raw) != 2:
            why = f"{keyword_for_tag(SPECIFIC[name])} has {len(raw)} bytes, not 2"
            raise SliceError("header-invalid", why, key=key)
        return int.from_bytes(raw, order)

    return number


def _padding(key: str, elements: Elements) -> tuple[int, int] | None:
    if not elements.values.get("padding"):
        return None
    number = _number_reader(key, elements)
    first = number("padding")
    return first, number("padding_limit") if elements.values.get("padding_limit") else first


def decode_text(raw: bytes) -> str:
    """Decode the text of an element as Latin-1, without padding."""
    return raw.strip(b"\0 ").decode("latin-1")


def _uid(key: str, values: dict[str, bytes], name: str) -> str:
    return _check_uid(key, decode_text(values.get(name, b"")), name)


def _check_uid(key: str, text: str, name: str) -> str:
    # The message omits other text, which may contain patient data.
    if not _UID.fullmatch(text):
        raise SliceError("header-invalid", f"the {name} UID is no UID", key=key)
    return text


def _refuse_without_pixels(key: str, elements: Elements, sop_class: str) -> None:
    if not elements.whole:
        raise SliceError("truncated", f"the header ends the {len(elements.data)} bytes", key=key)
    if sop_class and sop_class not in CT_CLASSES:
        raise SliceError("sop-class-unsupported", f"SOP class {sop_class}", key=key)
    raise SliceError("header-invalid", "there is no pixel data element", key=key)
