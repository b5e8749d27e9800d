"""Read the fields that describe a frame's series, acquisition and reconstruction.

Values are cached by their raw bytes: a study has thousands of frames and few distinct headers. Only
numbers, UIDs and terms of known tables are stored.
"""

import math
import re
from dataclasses import dataclass
from functools import lru_cache

from pipeline.dicom.headers import decode_text, identity, optional_integer
from pipeline.dicom.selection import Candidate
from pipeline.dicom.series.image_type import Origin, find_origin
from pipeline.dicom.series.kernels import Sharpness, find_sharpness
from pipeline.dicom.series.regions import Region, find_region
from storage_schemas.errors import SliceError

PHASE_FIELDS = (
    "kernel", "contrast", "scan_options", "thickness", "kilovolts", "trigger_time", "station",
    "diameter", "frame_of_reference", "temporal_position", "cardiac_phase",
)  # fmt: skip
"""Fields that identify a phase or reconstruction, besides the image type. Overlapping sets that
differ in one of them are never joined. Numbers are compared by value, texts without padding."""
_TIME = re.compile(r"[0-9]{2,6}(\.[0-9]{1,6})?")


@dataclass(frozen=True)
class SeriesFacts:
    """Fields that distinguish series, and by which the series to read is chosen.

    Parameters
    ----------
    number : int or None
        SeriesNumber.
    description : str
        SeriesDescription; matched with the user's pattern and the words of regions, never stored.
    kernel : str
        ConvolutionKernel as written in the header; never stored.
    origin : Origin
    sharpness : Sharpness
        Sharpness of the kernel.
    region : Region
    """

    number: int | None
    description: str
    kernel: str
    origin: Origin
    sharpness: Sharpness
    region: Region


def read_facts(candidate: Candidate) -> SeriesFacts:
    """Read the facts of a frame's series."""
    values = candidate.header.elements.values
    description = decode_text(values.get("series_description", b""))
    kernel = candidate.plane.kernel or decode_text(values.get("kernel", b""))
    texts = [decode_text(values.get(name, b"")) for name in ("protocol", "body_part")]
    return SeriesFacts(
        number=optional_integer(values.get("series_number", b"")),
        description=description,
        kernel=kernel,
        origin=read_origin(candidate),
        sharpness=find_sharpness(kernel),
        region=find_region(description, *texts),
    )


def read_origin(candidate: Candidate) -> Origin:
    """Read the origin of a frame."""
    description = candidate.header.elements.values.get("series_description", b"")
    return _origin(candidate.plane.image_type, description)


@lru_cache(maxsize=1024)
def _origin(image_type: str, description: bytes) -> Origin:
    return find_origin(image_type, decode_text(description))


def phase_of(candidate: Candidate) -> tuple[object, ...]:
    """Return the values that all frames of one phase and reconstruction share."""
    values, plane = candidate.header.elements.values, candidate.plane
    raw = tuple(values.get(name, b"") for name in PHASE_FIELDS)
    return (read_origin(candidate), plane.image_type, plane.phase, *_phase(raw))


def settings_of(candidate: Candidate) -> tuple[object, ...]:
    """Return the values that frames of one scan share, across grids and image types."""
    names = ("kernel", "contrast", "scan_options", "thickness", "kilovolts", "temporal_position")
    values = candidate.header.elements.values
    return (candidate.plane.kernel, *_phase(tuple(values.get(name, b"") for name in names)))


@lru_cache(maxsize=4096)
def _phase(raw: tuple[bytes, ...]) -> tuple[object, ...]:
    return tuple(_plain(value) for value in raw)


def _plain(value: bytes) -> object:
    text = decode_text(value)
    try:
        number = float(text)
    except ValueError:
        return " ".join(text.split())
    # "1.25" is "1.2500", and headers round; three digits distinguish scanner settings.
    return float(f"{number:.3g}") if math.isfinite(number) else text


def acquisition_of(candidate: Candidate) -> tuple[int, str]:
    """Return AcquisitionNumber as a sort key; frames without one come first."""
    plane = candidate.plane
    raw = candidate.header.elements.values.get("acquisition", b"")
    text = plane.acquisition or decode_text(raw)
    number = optional_integer(text.encode("latin-1", "replace"))
    return (-1 if number is None else number, "" if number is not None else text)


def times_of(candidate: Candidate) -> tuple[float | None, float | None, int | None]:
    """Return acquisition and content time (seconds since midnight), and InstanceNumber."""
    values = candidate.header.elements.values
    return (
        _seconds(values.get("acquisition_time", b"")),
        _seconds(values.get("content_time", b"")),
        candidate.header.instance_number if candidate.header.frames == 1 else None,
    )


@lru_cache(maxsize=8192)
def _seconds(raw: bytes) -> float | None:
    """Convert a time (VR TM: HHMMSS.FFFFFF) to seconds."""
    text = decode_text(raw).replace(":", "")
    if not _TIME.fullmatch(text):
        return None
    whole, _, rest = text.partition(".")
    whole = whole.ljust(6, "0")
    return int(whole[:2]) * 3600 + int(whole[2:4]) * 60 + float(f"{whole[4:6]}.{rest or 0}")


def same_object(candidate: Candidate) -> tuple[object, ...]:
    """Return the header values that two encodings of one image share."""
    values = candidate.header.elements.values
    instance = decode_text(values.get("sop_instance", b""))
    return (instance, candidate.frame, *times_of(candidate)) if instance else (id(candidate),)


def series_of(values: dict[str, bytes]) -> str | None:
    """Return the series of a refused object from its readable elements; None if unknown."""
    if "series" not in values:
        return None
    try:
        return identity("", values, "series")
    except SliceError:
        return None
