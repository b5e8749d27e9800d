"""Read the position, orientation, spacing and rescale of each frame of an object.

A single-frame CT image has these fields at the top level of its header, an enhanced one in its
shared or per-frame functional groups (PS3.3 C.7.6.16).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from pipeline.dicom.elements import quiet_pydicom, read_functional_groups
from pipeline.dicom.headers import CT_CLASSES, Header, decode_text
from storage_schemas.errors import SliceError

MAX_POSITION_MM = 1e5
_OTHER_UNITS = {"OD", "MGML", "Z_EFF", "ED", "EDW", "PCT"}
"""Defined terms of RescaleType other than HU (PS3.3 C.11.1.1.2); free text is ignored."""
_DIRECTION_TOLERANCE = 1e-3
_ROUNDING_TOLERANCE = 2e-2
"""Maximum error in length of directions with two decimals, which are normalised."""

Vector = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Plane:
    """Position, orientation, spacing and rescale of one frame.

    Parameters
    ----------
    position : (float, float, float)
        Centre of the first stored pixel, LPS, mm.
    row_direction, column_direction : (float, float, float)
        Unit vectors, LPS, along increasing column index and increasing row index.
    spacing : (float, float)
        Distance between rows and between columns, mm.
    slope, intercept : float
        Slope and intercept of the rescale to Hounsfield units.
    image_type : str
        ImageType or FrameType, values joined by a backslash.
    kernel, acquisition : str
        ConvolutionKernel and FrameAcquisitionNumber of an enhanced image; else empty.
    phase : tuple of str
        TemporalPositionIndex and StackID of an enhanced image; else empty.
    rounded : bool
        Whether the directions were rounded so coarsely that they had to be normalised.
    """

    position: Vector
    row_direction: Vector
    column_direction: Vector
    spacing: tuple[float, float]
    slope: float
    intercept: float
    image_type: str = ""
    kernel: str = ""
    acquisition: str = ""
    phase: tuple[str, ...] = ()
    rounded: bool = False


def read_planes(header: Header) -> list[Plane | SliceError]:
    """Read the plane of each frame.

    Returns
    -------
    list
        Plane of each frame, or ``header-invalid`` with the missing or invalid field.

    Raises
    ------
    SliceError
        ``header-invalid`` if the frames contradict NumberOfFrames, or cannot be read.
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
            decode_text(values.get("image_type", b"")),
            decode_text(values.get("unit", b"")),
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
"""Functional groups of enhanced CT that contain the fields (PS3.3 C.7.6.16)."""


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
            # A per-frame group may be present but empty while the shared group has the value.
            values[name] = _item_decimals(name, _first(own, sequence)) or _item_decimals(
                name, _first(shared, sequence)
            )

        def text(sequence: str, keyword: str) -> str:
            value = _first(own, sequence).get(keyword) or _first(shared, sequence).get(keyword)
            return "\\".join(map(str, value)) if isinstance(value, MultiValue) else str(value or "")

        plane = _plane(
            values,
            text("CTImageFrameTypeSequence", "FrameType")
            or decode_text(header.elements.values.get("image_type", b"")),
            text(_GROUPS["slope"], "RescaleType"),
        )
        return replace(
            plane,
            kernel=text("CTReconstructionSequence", "ConvolutionKernel"),
            acquisition=text("FrameContentSequence", "FrameAcquisitionNumber"),
            phase=(
                text("FrameContentSequence", "TemporalPositionIndex"),
                text("FrameContentSequence", "StackID"),
            ),
        )
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
    off = max(
        *(abs(length - 1) for length in lengths),
        abs(sum(a * b for a, b in zip(row, column, strict=True))),
    )
    rounded = _DIRECTION_TOLERANCE < off <= _ROUNDING_TOLERANCE and _is_rounded(orientation)
    if rounded:
        row, column = _unit_vectors(row, column)
    elif off > _DIRECTION_TOLERANCE:
        raise ValueError(f"ImageOrientationPatient {orientation} is no pair of unit vectors")
    if not 1e-3 <= min(spacing) <= max(spacing) <= 100:
        raise ValueError(f"PixelSpacing {spacing} mm is not in 0.001 to 100")
    return Plane(
        position=(position[0], position[1], position[2]),
        row_direction=row,
        column_direction=column,
        spacing=(spacing[0], spacing[1]),
        slope=_exactly(values, "slope", 1)[0],
        intercept=_exactly(values, "intercept", 1)[0],
        image_type=image_type,
        rounded=rounded,
    )


def _is_rounded(orientation: Sequence[float]) -> bool:
    """Whether no direction cosine has more than three decimals."""
    return all(round(value, 3) == value for value in orientation)


def _unit_vectors(row: Vector, column: Vector) -> tuple[Vector, Vector]:
    """Orthonormalise the directions, keeping the row's."""
    length = math.hypot(*row)
    r = (row[0] / length, row[1] / length, row[2] / length)
    along = sum(a * b for a, b in zip(r, column, strict=True))
    c = [b - along * a for a, b in zip(r, column, strict=True)]
    length = math.hypot(*c)
    return r, (c[0] / length, c[1] / length, c[2] / length)


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
    """Parse decimal strings (VR DS); the message of a ValueError omits the text."""
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
    """Read decimals from a functional group, converted by pydicom."""
    try:
        value = item.get(_KEYWORDS[name])
        if value is None:
            return []
        return [float(v) for v in (value if isinstance(value, MultiValue) else [value])]
    except (TypeError, ValueError):
        raise ValueError(f"{_KEYWORDS[name]} is no decimal string") from None
