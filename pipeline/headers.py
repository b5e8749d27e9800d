"""What an object says about itself: its identity, the form of its pixels, where its frames lie.

Reading judges nothing: an MR image has a header too. `check_object` then says whether the object
can be a part of a CT stack at all. Not here: the pixel data (`pipeline.pixeldata`).
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from pipeline.elements import (
    SPECIFIC,
    Elements,
    quiet_pydicom,
    read_elements,
    read_functional_groups,
)
from pipeline.limits import Limits
from storage_schemas.errors import SliceError

CT_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.2": "CT",
    "1.2.840.10008.5.1.4.1.1.2.1": "Enhanced CT",
    "1.2.840.10008.5.1.4.1.1.2.2": "Legacy Converted Enhanced CT",
}
"""The SOP classes that hold Hounsfield units (PS3.4 B.5)."""

MAX_POSITION_MM = 1e5
_PHOTOMETRIC = {
    "MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422",
    "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT",
}  # fmt: skip
_OTHER_UNITS = {"OD", "MGML", "Z_EFF", "ED", "EDW", "PCT"}
"""What a rescale may give beside Hounsfield units (PS3.3 C.11.1.1.2); free text is no unit."""
_UID = re.compile(r"[0-9.]{0,64}")
_DIRECTION_TOLERANCE = 1e-3

Vector = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Plane:
    """Where one frame lies and how it is scaled.

    Parameters
    ----------
    position : (float, float, float)
        LPS mm of the centre of the first stored pixel.
    row_direction, column_direction : (float, float, float)
        Unit vectors, LPS, along increasing column index and increasing row index.
    spacing : (float, float)
        mm between rows and between columns.
    slope, intercept : float
        Of the rescale to Hounsfield units.
    localizer : bool
        Whether the image type says so.
    """

    position: Vector
    row_direction: Vector
    column_direction: Vector
    spacing: tuple[float, float]
    slope: float
    intercept: float
    localizer: bool


@dataclass(frozen=True, slots=True)
class Header:
    """One object's header.

    Parameters
    ----------
    key : str
        The object's key in the source.
    elements : Elements
        What it was read from.
    sop_class, syntax, study, series : str
        UIDs; study and series may be empty.
    patient_id : str
        Raw; for a salted hash only.
    instance_number : int or None
        A label, never an order.
    frames, rows, columns : int
    samples, bits_allocated, bits_stored, high_bit : int
    photometric : str
        ``other`` for anything that is no term of PS3.3 C.7.6.3.1.2.
    signed : bool
        Of the stored values.
    padding : (int, int) or None
        First and last stored value of padded pixels, as 16-bit words.
    burned_in : bool
        Whether text may be burned into the pixels.
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
    """Read one object's header; its pixels are not looked at.

    Raises
    ------
    SliceError
        ``not-dicom``, ``truncated``, ``header-invalid``, ``inflate-over-budget``, or
        ``sop-class-unsupported`` where the object is no image at all.
    """
    elements = read_elements(key, data, limits)
    values = elements.values
    sop_class = _uid(key, values, "sop_class")
    if elements.pixel_start is None:
        _refuse_without_pixels(key, elements, sop_class)
    number = _number_reader(key, elements)
    photometric = _text(values.get("photometric", b""))
    return Header(
        key=key,
        elements=elements,
        sop_class=sop_class,
        syntax=_check_uid(key, elements.syntax, "transfer syntax"),
        study=_uid(key, values, "study"),
        series=_uid(key, values, "series"),
        patient_id=_text(values.get("patient_id", b"")),
        instance_number=_optional_integer(values.get("instance_number", b"")),
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
        burned_in=_text(values.get("burned_in", b"")).upper() == "YES",
        scanner=(
            _text(values.get("manufacturer", b"")),
            _text(values.get("model", b"")),
            _text(values.get("kernel", b"")),
        ),
    )


def read_study_uid(head: bytes) -> str | None:
    """The StudyInstanceUID in an object's first bytes, or None where none can be read."""
    try:
        return _uid("", read_elements("", head, Limits()).values, "study") or None
    except SliceError:
        return None


def check_object(header: Header) -> None:
    """Refuse what cannot be a part of a CT stack, whatever its pixels.

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


def read_planes(header: Header) -> list[Plane | SliceError]:
    """Read where each frame lies.

    Returns
    -------
    list
        One entry a frame: its plane, or ``header-invalid`` with the field that is missing.

    Raises
    ------
    SliceError
        ``header-invalid`` where not even the number of frames can be trusted.
    """
    if CT_CLASSES.get(header.sop_class) != "CT":
        return _frame_planes(header)
    if header.frames != 1:
        why = f"{header.frames} frames, but a CT image has one position"
        raise SliceError("header-invalid", why, key=header.key)
    return [_single_plane(header)]


def _single_plane(header: Header) -> Plane | SliceError:
    values = header.elements.values
    try:
        return _plane(
            {name: _decimals(name, values.get(name, b"")) for name in _KEYWORDS},
            _text(values.get("image_type", b"")),
            _text(values.get("unit", b"")),
        )
    except ValueError as error:
        return SliceError("header-invalid", str(error), key=header.key)


_GROUPS = {
    "position": "PlanePositionSequence",
    "orientation": "PlaneOrientationSequence",
    "spacing": "PixelMeasuresSequence",
    "slope": "PixelValueTransformationSequence",
    "intercept": "PixelValueTransformationSequence",
}
"""Where enhanced CT keeps what a single CT image has at its top (PS3.3 C.7.6.16)."""


def _frame_planes(header: Header) -> list[Plane | SliceError]:
    try:
        with quiet_pydicom():
            groups = read_functional_groups(header.elements)
            shared = _first(groups, "SharedFunctionalGroupsSequence")
            frames = list(groups.get("PerFrameFunctionalGroupsSequence") or [])
            planes = [_frame_plane(header, n, shared, own) for n, own in enumerate(frames)]
    except (Exception, RecursionError) as error:  # noqa: BLE001 - damaged bytes raise anything here
        why = f"functional groups: {type(error).__name__}"
        raise SliceError("header-invalid", why, key=header.key) from None
    if len(planes) != header.frames:
        why = f"{len(planes)} per-frame functional groups for {header.frames} frames"
        raise SliceError("header-invalid", why, key=header.key)
    return planes


def _frame_plane(header: Header, frame: int, shared: Dataset, own: Dataset) -> Plane | SliceError:
    values = {}
    try:
        for name, sequence in _GROUPS.items():
            item = _first(own, sequence) if sequence in own else _first(shared, sequence)
            values[name] = _item_decimals(name, item)
        kind = _first(own, "CTImageFrameTypeSequence") or _first(shared, "CTImageFrameTypeSequence")
        rescale = _first(own, _GROUPS["slope"]) or _first(shared, _GROUPS["slope"])
        unit = str(rescale.get("RescaleType") or "")
        return _plane(values, "\\".join(map(str, kind.get("FrameType") or ())), unit)
    except ValueError as error:
        return SliceError("header-invalid", f"frame {frame}: {error}", key=header.key)


def _first(dataset: Dataset, keyword: str) -> Dataset:
    sequence = dataset.get(keyword)
    return sequence[0] if sequence else Dataset()


def _plane(values: Mapping[str, Sequence[float]], image_type: str, unit: str) -> Plane:
    if unit in _OTHER_UNITS:
        raise ValueError(f"RescaleType is {unit}, not HU")
    position = _exactly(values, "position", 3)
    orientation = _exactly(values, "orientation", 6)
    spacing = _exactly(values, "spacing", 2)
    row = (orientation[0], orientation[1], orientation[2])
    column = (orientation[3], orientation[4], orientation[5])
    if max(map(abs, position)) > MAX_POSITION_MM:
        raise ValueError(f"ImagePositionPatient {position} mm lies beyond {MAX_POSITION_MM:g}")
    lengths = (math.hypot(*row), math.hypot(*column))
    if (
        max(abs(length - 1) for length in lengths) > _DIRECTION_TOLERANCE
        or abs(sum(a * b for a, b in zip(row, column, strict=True))) > _DIRECTION_TOLERANCE
    ):
        raise ValueError(f"ImageOrientationPatient {orientation} is no pair of unit vectors")
    if not 1e-3 <= min(spacing) <= max(spacing) <= 100:
        raise ValueError(f"PixelSpacing {spacing} mm is not in 0.001 to 100")
    kinds = image_type.split("\\")
    return Plane(
        position=(position[0], position[1], position[2]),
        row_direction=row,
        column_direction=column,
        spacing=(spacing[0], spacing[1]),
        slope=_exactly(values, "slope", 1)[0],
        intercept=_exactly(values, "intercept", 1)[0],
        localizer=len(kinds) > 2 and kinds[2].strip() == "LOCALIZER",
    )


_KEYWORDS = {
    "position": "ImagePositionPatient",
    "orientation": "ImageOrientationPatient",
    "spacing": "PixelSpacing",
    "slope": "RescaleSlope",
    "intercept": "RescaleIntercept",
}


def _exactly(values: Mapping[str, Sequence[float]], name: str, count: int) -> Sequence[float]:
    found = values[name]
    if len(found) != count:
        raise ValueError(f"{_KEYWORDS[name]} has {len(found)} values, not {count}")
    if not all(map(math.isfinite, found)):
        raise ValueError(f"{_KEYWORDS[name]} is not finite")
    return found


def _decimals(name: str, raw: bytes) -> list[float]:
    """Decimal strings (VR DS); raises ValueError, without the text, on anything else."""
    text = raw.strip(b"\0 ")
    if not text:
        return []
    try:
        if b"_" not in text:
            return [float(part) for part in text.split(b"\\")]
    except ValueError:
        pass
    raise ValueError(f"{_KEYWORDS[name]} is no decimal string")


def _item_decimals(name: str, item: Dataset) -> list[float]:
    """The same from a functional group, where pydicom converts."""
    try:
        value = item.get(_KEYWORDS[name])
        if value is None:
            return []
        return [float(v) for v in (value if isinstance(value, MultiValue) else [value])]
    except (TypeError, ValueError):
        raise ValueError(f"{_KEYWORDS[name]} is no decimal string") from None


def _optional_integer(raw: bytes) -> int | None:
    try:
        return int(raw.strip(b"\0 "))
    except ValueError:
        return None


def _frames(key: str, values: dict[str, bytes]) -> int:
    raw = values.get("frames", b"").strip(b"\0 ")
    frames = 1 if not raw else _optional_integer(raw)
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


def _text(raw: bytes) -> str:
    return raw.strip(b"\0 ").decode("latin-1")


def _uid(key: str, values: dict[str, bytes], name: str) -> str:
    return _check_uid(key, _text(values.get(name, b"")), name)


def _check_uid(key: str, text: str, name: str) -> str:
    # Whatever else stands there is never repeated: it may be text about the patient.
    if not _UID.fullmatch(text):
        raise SliceError("header-invalid", f"the {name} UID is no UID", key=key)
    return text


def _refuse_without_pixels(key: str, elements: Elements, sop_class: str) -> None:
    if not elements.whole:
        raise SliceError("truncated", f"the header ends the {len(elements.data)} bytes", key=key)
    if sop_class and sop_class not in CT_CLASSES:
        raise SliceError("sop-class-unsupported", f"SOP class {sop_class}", key=key)
    raise SliceError("header-invalid", "there is no pixel data element", key=key)
