"""The record of one study: its input objects, how they were decoded, and the arrays it wrote.

The record is written after all arrays of the study; a study without a record does not exist for
readers. A record holds neither times nor host names, so the same input gives the same bytes.
Quarantined studies have a record too, so every listed study has one and the tables can be rebuilt
from the records alone.
"""

import hashlib
from dataclasses import dataclass, is_dataclass
from typing import Annotated, Any, Literal

import msgspec

from storage_schemas.canonical import canonical_json, sha256_json
from storage_schemas.errors import StoreError
from storage_schemas.geometry import StackGeometry
from storage_schemas.outcomes import STORED as STORED
from storage_schemas.parsing.strict_json import Count, Side, Size, decode
from storage_schemas.study_key import StudyKey

SCHEMA = "cspine-record/2"
_READ = (SCHEMA, "cspine-record/1")
"""Versions that are read: the first had no unused objects and no list of series."""

Outcome = Literal["committed", "quarantined"]
CROPPED = "cropped"
"""Outcome of a vertebra that has a crop."""
NOT_LOCALIZED = "not-localized"
"""Outcome of a vertebra in a study without a mask, in a run without a localizer; any other outcome
is the kind of the error that refused it."""

Bounds = tuple[Count, Count, Count, Count, Count, Count]
"""(z0, z1, y0, y1, x0, x1) in voxels of the volume, ends exclusive."""


@dataclass(frozen=True)
class InputObject:
    """One object of the source.

    Parameters
    ----------
    key : str
        Path below the source, or a digest of it.
    size : int
        Length in bytes.
    sha256 : str
        SHA-256 of the object's bytes; empty where it could not be fetched.
    outcome : str
        ``stored``; ``unused:`` and one of `storage_schemas.outcomes.UNUSED_KINDS`; or the kind
        under which it stands in quarantine.
    reason : str
        Text of that error, in one line; empty where stored.
    transfer_syntax : str
        UID of its transfer syntax; empty where refused.
    decoder : str
        Name of the decoder that read its pixels; empty where refused.
    """

    key: str
    size: Size
    sha256: str
    outcome: str = STORED
    reason: str = ""
    transfer_syntax: str = ""
    decoder: str = ""


@dataclass(frozen=True)
class SeriesRecord:
    """One part of a study that could be read: the frames of a series that belong together.

    Parameters
    ----------
    series : str
        SeriesInstanceUID; may be empty. A series may hold several parts.
    number : int or None
        SeriesNumber.
    objects : int
        Objects that its frames came from.
    slices : int
        Positions of its stack; frames, where it forms none.
    image : str
        ``original``, ``derived``, ``reformat``, ``projection``, ``tracking``, ``scout`` or
        ``page``.
    kernel : str
        ``sharp``, ``medium``, ``soft`` or ``unknown``.
    chosen : bool
        Whether it was read.
    reason : str
        Why, or why not.
    """

    series: str
    number: int | None
    objects: Count
    slices: Count
    image: str
    kernel: str
    chosen: bool
    reason: str


@dataclass(frozen=True)
class StoredSlice:
    """One slice of the volume; its index in `StudyVolumeRecord.slices` is its z.

    Parameters
    ----------
    key : str
        Key of the input object that holds its pixels.
    frame : int
        Frame in that object, from 0.
    instance_number : int or None
        InstanceNumber of the header; never used for ordering.
    """

    key: str
    frame: Count
    instance_number: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] | None


@dataclass(frozen=True)
class Vertebra:
    """Outcome of one level that the run was to crop.

    Parameters
    ----------
    level : str
        Name from `storage_schemas.vertebrae.LEVELS`.
    outcome : str
        ``cropped``, or a kind such as ``vertebra-not-found``.
    reason : str
        Why there is no crop; empty where there is one.
    box : tuple of int or None
        Place of the crop in the volume; None where there is no crop.
    extent : tuple of int or None
        Bounding box of the mask in the volume, without the margin of the crop.
    voxels : int
        Number of voxels of the mask.
    mean_hu : float or None
        Mean HU inside the mask; bone lies above about 150.
    score : float or None
        The localizer's confidence, 0 to 1; None for a given mask.
    """

    level: str
    outcome: str
    reason: str = ""
    box: Bounds | None = None
    extent: Bounds | None = None
    voxels: Size = 0
    mean_hu: float | None = None
    score: float | None = None


@dataclass(frozen=True)
class StoredArray:
    """One array of the study.

    Parameters
    ----------
    path : str
        Key below ``volumes.zarr``.
    shape : tuple of int
        Number of voxels along (z, y, x).
    dtype : {"int16", "uint8"}
        Type of the voxels.
    sha256 : str
        SHA-256 of the array's little-endian, C-order bytes.
    size : int
        Length of the shard object in bytes.
    """

    path: str
    shape: tuple[Side, Side, Side]
    dtype: Literal["int16", "uint8"]
    sha256: str
    size: Size


@dataclass(frozen=True)
class StudyVolumeRecord:
    """The canonical volume of a study, before cropping.

    Parameters
    ----------
    series : str
        SeriesInstanceUID of the stack.
    scanner : str
        Digest of technical header fields that is equal for studies of the same scanner.
    geometry : StackGeometry
        Geometry of the volume.
    transposed : bool
        Whether rows and columns of the source were exchanged.
    flipped : tuple of bool
        Whether each of the axes (z, y, x) was flipped after that.
    slices : tuple of StoredSlice
        Slices of the volume, z ascending.
    hu_sha256 : str
        SHA-256 of the int16 volume's little-endian, C-order bytes, padding set to air.
    """

    series: str
    scanner: str
    geometry: StackGeometry
    transposed: bool
    flipped: tuple[bool, bool, bool]
    slices: tuple[StoredSlice, ...]
    hu_sha256: str


@dataclass(frozen=True)
class StudyRecord:
    """The record of one study.

    Parameters
    ----------
    study : StudyKey
        StudyInstanceUID, or a key made from the folder's URL where the source names none.
    patient : str
        Equal for studies of one patient: a salted hash of PatientID, else the study.
    outcome : {"committed", "quarantined"}
        Whether the study has arrays, or was refused as a whole.
    config_sha256, input_sha256 : str
        Digests of the settings and of the inputs' keys, sizes and versions. A study whose digests
        have changed is processed again.
    inputs : tuple of InputObject
        Every object of the study that the source listed, sorted by key.
    kind, reason : str
        Kind and text of the error that quarantined the study; empty where committed.
    localizer : str
        Source of the vertebrae: the mask convention, or the digest of a network; empty where
        nothing located them.
    volume : StudyVolumeRecord or None
        Canonical volume; None where quarantined.
    vertebrae : tuple of Vertebra
        Outcome of each level that the run was to crop.
    arrays : tuple of StoredArray
        Arrays of the study.
    metadata : tuple of (str, str)
        Key and SHA-256 of every ``zarr.json`` of the study.
    series : tuple of SeriesRecord
        What could have been read, and which of it was; empty where nothing could.
    """

    study: StudyKey
    patient: str
    outcome: Outcome
    config_sha256: str
    input_sha256: str
    inputs: tuple[InputObject, ...]
    kind: str = ""
    reason: str = ""
    localizer: str = ""
    volume: StudyVolumeRecord | None = None
    vertebrae: tuple[Vertebra, ...] = ()
    arrays: tuple[StoredArray, ...] = ()
    metadata: tuple[tuple[str, str], ...] = ()
    series: tuple[SeriesRecord, ...] = ()

    def to_bytes(self) -> bytes:
        """Return the record as canonical JSON, with the SHA-256 of all other fields."""
        document = _plain(self) | {"schema": SCHEMA}
        return canonical_json(document | {"sha256": sha256_json(document)})

    @classmethod
    def from_bytes(cls, data: bytes, key: str) -> "StudyRecord":
        """Read and check a record.

        Parameters
        ----------
        data : bytes
            The file's content.
        key : str
            The file, for the message.

        Raises
        ------
        StoreError
            ``record-invalid`` where the bytes are no record, contradict themselves, or do not have
            their own digest; ``schema-unsupported`` where another version wrote it.
        """
        _check_envelope(data, key)
        try:
            record = decode(data, cls)
            _check_consistency(record)
        except ValueError as error:
            raise StoreError("record-invalid", str(error), key=key) from None
        return record


@dataclass(frozen=True)
class RecordHead:
    """The part of a record that a run needs to resume, read in a fraction of the time.

    Parameters
    ----------
    study, outcome, kind, reason, config_sha256, input_sha256
        Fields of `StudyRecord`.
    objects : int
        Number of input objects.
    sha256 : str
        Digest of the whole record.
    """

    study: StudyKey
    outcome: Outcome
    kind: str
    reason: str
    config_sha256: str
    input_sha256: str
    objects: int
    sha256: str

    @classmethod
    def from_bytes(cls, data: bytes, key: str) -> "RecordHead":
        """Read and check a record; raises StoreError as `StudyRecord.from_bytes` does."""
        sha256 = _check_envelope(data, key)
        try:
            head = decode(data, _Head)
        except ValueError as error:
            raise StoreError("record-invalid", str(error), key=key) from None
        return cls(
            head.study,
            head.outcome,
            head.kind,
            head.reason,
            head.config_sha256,
            head.input_sha256,
            len(head.inputs),
            sha256,
        )


class _Envelope(msgspec.Struct):
    """What every version of a record has."""

    schema: Any
    sha256: Any = None


class _Head(msgspec.Struct):
    """The fields of a record that `RecordHead` takes; the inputs are counted, not read."""

    study: StudyKey
    outcome: Outcome
    kind: str
    reason: str
    config_sha256: str
    input_sha256: str
    inputs: list[msgspec.Raw]


def _plain(value: Any) -> Any:
    """Convert to JSON values; `dataclasses.asdict` would copy every number of every slice."""
    if isinstance(value, StackGeometry):
        return value.to_json()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return {k: _plain(v) for k, v in vars(value).items()} if is_dataclass(value) else value


def _check_envelope(data: bytes, key: str) -> str:
    """Check a record's schema and digest, and return the digest."""
    try:
        envelope = decode(data, _Envelope)
    except ValueError:
        raise StoreError("record-invalid", "no JSON record", key=key) from None
    if envelope.schema not in _READ:
        raise StoreError("schema-unsupported", f"{envelope.schema!r}, expected {SCHEMA!r}", key=key)
    # Canonical JSON has one form, so the document without its digest is found in the bytes: a
    # quotation mark inside a value has a backslash before it, and no digest holds itself.
    digest = str(envelope.sha256)
    head, found, tail = data.partition(f'"sha256":"{digest}",'.encode())
    if not found or hashlib.sha256(head + tail).hexdigest() != digest:
        raise StoreError("record-invalid", "its digest does not hold", key=key)
    return digest


def _check_consistency(record: StudyRecord) -> None:
    """Raise ValueError where one part of a record contradicts another, or names foreign arrays."""
    paths = [array.path for array in record.arrays]
    for name in (*paths, *(name for name, _ in record.metadata)):
        if not name.startswith(f"{record.study}/") or ".." in name.split("/"):
            raise ValueError(f"{name!r} is no object of the study")
    volume = record.volume
    if volume is None:
        if record.vertebrae:
            raise ValueError("vertebrae without a volume")
        return
    if len(volume.slices) != volume.geometry.shape[0]:
        raise ValueError(f"{len(volume.slices)} slices, shape {volume.geometry.shape}")
    for vertebra in record.vertebrae:
        if vertebra.outcome != CROPPED:
            continue
        if f"{record.study}/{vertebra.level}/0" not in paths:
            raise ValueError(f"{vertebra.level} is cropped, but has no array")
        for box in (vertebra.box, vertebra.extent):
            if box is None or not _lies_within(box, volume.geometry.shape):
                raise ValueError(f"{vertebra.level} has the box {box}")


def _lies_within(box: Bounds, shape: tuple[int, int, int]) -> bool:
    starts, stops = box[::2], box[1::2]
    return all(a < b <= most for a, b, most in zip(starts, stops, shape, strict=True))
