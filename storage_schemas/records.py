"""The commit record of one study: what went in, how it was read, and what came out.

A study exists for readers only when its record does. A record holds no time and no host name, so
running again on the same input gives the same bytes. Quarantined studies have a record too: that is
how nothing is lost, and how the tables can be rebuilt from records alone.
"""

import hashlib
import json
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

from storage_schemas.canonical import canonical_json, sha256_json
from storage_schemas.errors import StoreError, StudyError
from storage_schemas.geometry import StackGeometry
from storage_schemas.study_key import StudyKey

SCHEMA = "cspine-record/1"

Outcome = Literal["committed", "quarantined"]
STORED = "stored"
"""The outcome of an input object whose pixels are in the volume; any other outcome is a kind."""

CROPPED = "cropped"
"""The outcome of a vertebra that has a crop."""
NOT_LOCALIZED = "not-localized"
"""The outcome of a vertebra that nothing has looked for yet; any other outcome is a kind."""


@dataclass(frozen=True)
class InputObject:
    """One object of the source.

    Parameters
    ----------
    key : str
        Path below the source.
    size : int
        Bytes.
    sha256 : str
        Of its bytes; empty where it could not be fetched.
    outcome : str
        ``stored``, or the kind under which it stands in quarantine.
    reason : str
        Why, in one line; empty where stored.
    transfer_syntax, decoder : str
        How its pixels were read; empty where refused.
    """

    key: str
    size: int
    sha256: str
    outcome: str = STORED
    reason: str = ""
    transfer_syntax: str = ""
    decoder: str = ""


@dataclass(frozen=True)
class StoredSlice:
    """One slice of the volume; its index in `StudyRecord.slices` is its z.

    Parameters
    ----------
    key : str
        The object that it came from.
    frame : int
        Frame in that object, from 0.
    instance_number : int or None
        As in the header; provenance only, nothing is ordered by it.
    """

    key: str
    frame: int
    instance_number: int | None


@dataclass(frozen=True)
class Vertebra:
    """What became of one level.

    Parameters
    ----------
    level : str
        From `storage_schemas.vertebrae.LEVELS`.
    outcome : str
        ``cropped``, or a kind such as ``vertebra-not-found``.
    reason : str
        Why there is no crop; empty where there is one.
    box : tuple of int or None
        Crop in the volume: (z0, z1, y0, y1, x0, x1), ends exclusive.
    extent : tuple of int or None
        The same of the mask alone, without margin.
    voxels : int
        Voxels of the mask.
    mean_hu : float or None
        Mean HU inside the mask; bone lies above about 150.
    score : float or None
        The localizer's confidence, 0 to 1; None for a given mask.
    """

    level: str
    outcome: str
    reason: str = ""
    box: tuple[int, int, int, int, int, int] | None = None
    extent: tuple[int, int, int, int, int, int] | None = None
    voxels: int = 0
    mean_hu: float | None = None
    score: float | None = None


@dataclass(frozen=True)
class StoredArray:
    """One array that the study's commit wrote.

    Parameters
    ----------
    path : str
        Key below ``volumes.zarr``.
    shape : tuple of int
        (z, y, x).
    dtype : str
        ``int16`` or ``uint8``.
    sha256 : str
        Of the array's little-endian, C-order bytes.
    size : int
        Bytes of the shard object.
    """

    path: str
    shape: tuple[int, int, int]
    dtype: str
    sha256: str
    size: int


@dataclass(frozen=True)
class StudyVolumeRecord:
    """The canonical volume before cropping.

    Parameters
    ----------
    series : str
        SeriesInstanceUID of the stack.
    scanner : str
        Digest of the technical header fields: groups the studies of one machine, names none.
    geometry : StackGeometry
        Of the volume.
    transposed : bool
        Whether rows and columns were exchanged.
    flipped : tuple of bool
        Which axes (z, y, x) were flipped then.
    slices : tuple of StoredSlice
        z ascending.
    hu_sha256 : str
        Of the int16 volume, padding masked.
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
        The StudyInstanceUID, or a stand-in where the source names none.
    patient : str
        Groups studies of one patient: a salted hash of PatientID, else the study itself.
    outcome : {"committed", "quarantined"}
    config_sha256, input_sha256 : str
        Digests of the settings and of the inputs' keys, sizes and versions; resume compares them.
    inputs : tuple of InputObject
        Every object that was listed, by key.
    kind, reason : str
        Why the study is in quarantine; empty where committed.
    localizer : str
        What found the vertebrae, with its version or digest; empty where nothing did.
    volume : StudyVolumeRecord or None
        None where quarantined.
    vertebrae : tuple of Vertebra
        One entry for each level that was asked for.
    arrays : tuple of StoredArray
    metadata : tuple of (str, str)
        Key and SHA-256 of every ``zarr.json`` of the study.
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

    def to_bytes(self) -> bytes:
        """The record as canonical JSON with a digest of itself."""
        document = _plain(self) | {"schema": SCHEMA}
        return canonical_json(document | {"sha256": sha256_json(document)})

    @classmethod
    def from_bytes(cls, data: bytes, key: str) -> "StudyRecord":
        """Read and check a record.

        Raises
        ------
        StoreError
            ``record-invalid`` where the bytes are no record or do not have their own digest;
            ``schema-unsupported`` where another version wrote it.
        """
        document = _parse(data, key)
        del document["schema"], document["sha256"]
        try:
            return _from_document(document)
        except (KeyError, TypeError, ValueError, StudyError) as error:
            raise StoreError("record-invalid", f"{error}", key=key) from None


@dataclass(frozen=True)
class RecordHead:
    """What resume needs of a record, at a fraction of the cost of the whole.

    Parameters
    ----------
    study, outcome, kind, reason, config_sha256, input_sha256
        As in `StudyRecord`.
    objects : int
        Number of its inputs.
    sha256 : str
        The record's digest of itself.
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
        document = _parse(data, key)
        try:
            return cls(
                study=StudyKey(document["study"]),
                objects=len(document["inputs"]),
                **{
                    name.name: document[name.name]
                    for name in fields(cls)
                    if name.name not in ("study", "objects")
                },
            )
        except (KeyError, TypeError, StudyError) as error:
            raise StoreError("record-invalid", f"{error}", key=key) from None


def _plain(value: Any) -> Any:
    """What JSON takes; `asdict` would copy every number of every slice."""
    if isinstance(value, StackGeometry):
        return value.to_json()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return {k: _plain(v) for k, v in vars(value).items()} if is_dataclass(value) else value


def _parse(data: bytes, key: str) -> dict[str, Any]:
    """Read a record's JSON, its schema and digest checked."""
    try:
        document: dict[str, Any] = json.loads(data)
        schema, claimed = document["schema"], document.get("sha256")
    except (ValueError, KeyError, AttributeError, TypeError):
        raise StoreError("record-invalid", "no JSON record", key=key) from None
    if schema != SCHEMA:
        raise StoreError("schema-unsupported", f"{schema!r}, expected {SCHEMA!r}", key=key)
    # Canonical JSON has one form, so the document without its digest is found in the bytes: no
    # quotation mark of a value stands there without a backslash.
    before = f'"schema":"{SCHEMA}",'.encode()
    head, found, tail = data.partition(before + f'"sha256":"{claimed}",'.encode())
    if not found or hashlib.sha256(head + before + tail).hexdigest() != claimed:
        raise StoreError("record-invalid", "its digest does not hold", key=key)
    return document


def _from_document(document: dict[str, Any]) -> StudyRecord:
    volume = document.pop("volume")
    return StudyRecord(
        inputs=tuple(InputObject(**row) for row in document.pop("inputs")),
        volume=None if volume is None else _volume(volume),
        vertebrae=tuple(_vertebra(row) for row in document.pop("vertebrae")),
        arrays=tuple(_array(row) for row in document.pop("arrays")),
        metadata=tuple((key, digest) for key, digest in document.pop("metadata")),
        study=StudyKey(document.pop("study")),
        **document,
    )


def _volume(row: dict[str, Any]) -> StudyVolumeRecord:
    z, y, x = row.pop("flipped")
    return StudyVolumeRecord(
        geometry=StackGeometry.from_json(row.pop("geometry")),
        flipped=(z, y, x),
        slices=tuple(StoredSlice(**entry) for entry in row.pop("slices")),
        **row,
    )


def _vertebra(row: dict[str, Any]) -> Vertebra:
    for name in ("box", "extent"):
        if row[name] is not None:
            z0, z1, y0, y1, x0, x1 = row[name]
            row[name] = (z0, z1, y0, y1, x0, x1)
    return Vertebra(**row)


def _array(row: dict[str, Any]) -> StoredArray:
    z, y, x = row.pop("shape")
    return StoredArray(shape=(z, y, x), **row)
