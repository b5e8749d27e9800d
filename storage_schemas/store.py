"""The store: its keys, and how studies are committed, listed, read and proven.

Nothing else knows a path. The layout is

::

    volumes.zarr/<study>/overview           the study in one small cube
    volumes.zarr/<study>/overview_levels    its vertebrae on the same grid, where it has a mask
    volumes.zarr/<study>/<level>            the crop: an OME-Zarr image, with its mask as a label
    records/<study>.json                    written last: a study exists when its record does
    catalog/<table>.parquet                 derived from the records
    logs/<start>.jsonl                      timings of each run; only reports read them

Any fsspec URL will do. Not here: what the objects hold (`crops`, `records`, `catalog`).
"""

import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from storage_schemas import crops
from storage_schemas.canonical import sha256_voxels
from storage_schemas.catalog import check_table, read_targets
from storage_schemas.errors import StoreError, UsageError, reason_of
from storage_schemas.geometry import StackGeometry
from storage_schemas.objects import REQUESTS, ObjectFolder
from storage_schemas.records import RecordHead, StoredArray, StudyRecord
from storage_schemas.study_key import StudyKey
from storage_schemas.targets import COMPETITION, Targets

Read = TypeVar("Read", StudyRecord, RecordHead)

STORE_SCHEMA = "cspine-store/1"
VOLUMES = "volumes.zarr"
OVERVIEW = "overview"
OVERVIEW_LEVELS = "overview_levels"
_RECORDS = "records"
_RECORD_END = ".json"


@dataclass(frozen=True)
class Crop:
    """A vertebra as it was stored.

    Parameters
    ----------
    hu : ndarray, shape (z, y, x), int16, HU
        z ascends from feet to head, y runs to the back, x to the patient's left.
    mask : ndarray, shape (z, y, x), uint8, or None
        1 inside the vertebra; None where no mask is known.
    geometry : StackGeometry
        Of the crop, in mm, LPS.
    attributes : mapping
        The rest of the group's ``cspine`` block.
    """

    hu: NDArray[np.int16]
    mask: NDArray[np.uint8] | None
    geometry: StackGeometry
    attributes: Mapping[str, Any]


class StudyStore:
    """A store at an fsspec URL.

    Parameters
    ----------
    url : str
        For example ``out/store`` or ``s3://bucket/store``. Credentials come from the environment.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.objects = ObjectFolder(url)

    @classmethod
    def create(cls, url: str) -> "StudyStore":
        """Open the store, making it where there is none yet.

        Raises
        ------
        UsageError
            ``store-unwritable`` where nothing can be written there.
        """
        store = cls._at(url, "store-unwritable")
        try:
            if not store.objects.exists(f"{VOLUMES}/zarr.json"):
                marker = {"cspine": {"schema": STORE_SCHEMA}}
                store.objects.put_all(crops.create_group(VOLUMES, marker))
        except OSError as error:
            reason = f"cannot be written: {reason_of(error)}"
            raise UsageError("store-unwritable", reason, key=url) from None
        store._check_schema()
        return store

    @classmethod
    def open(cls, url: str) -> "StudyStore":
        """Open a store for reading.

        Raises
        ------
        UsageError
            ``store-not-found`` where there is none.
        StoreError
            ``schema-unsupported`` where another version wrote it.
        """
        store = cls._at(url, "store-not-found")
        try:
            store._check_schema()
        except StoreError as error:
            if error.kind != "array-missing":
                raise
            raise UsageError("store-not-found", "there is no store", key=url) from None
        except OSError as error:
            reason = f"cannot be read: {reason_of(error)}"
            raise UsageError("store-not-found", reason, key=url) from None
        return store

    @classmethod
    def _at(cls, url: str, kind: str) -> "StudyStore":
        try:
            return cls(url)
        except (ValueError, ImportError, OSError) as error:
            raise UsageError(kind, f"no such kind of URL: {error}", key=url) from None

    def _check_schema(self) -> None:
        path = f"{VOLUMES}/zarr.json"
        block = crops.read_attributes(self._get(path, path), path).get("cspine", {})
        if block.get("schema") != STORE_SCHEMA:
            found = block.get("schema")
            raise StoreError("schema-unsupported", f"{found!r}, not {STORE_SCHEMA!r}", key=path)

    # ---- studies -------------------------------------------------------------------------------

    def commit(self, record: StudyRecord, objects: Mapping[str, bytes]) -> None:
        """Make a study exist: its objects first, its record last.

        Parameters
        ----------
        record : StudyRecord
            What stands there under the same key is removed first, its record before all else.
        objects : mapping of str to bytes
            Keys below ``volumes.zarr``, all of them below the study's own.
        """
        study = record.study
        if strays := [key for key in objects if not key.startswith(f"{study}/")]:
            raise ValueError(f"{study} must not write {strays[0]}")
        self.discard(study)
        self.objects.put_all({f"{VOLUMES}/{key}": data for key, data in objects.items()})
        self.objects.put(_record_key(study), record.to_bytes())

    def discard(self, study: str) -> None:
        """Remove a study's record, then whatever is left of its arrays; nothing there is fine."""
        key = StudyKey(study)
        self.objects.remove(_record_key(key))
        self.objects.remove(f"{VOLUMES}/{key}")

    def studies(self) -> list[StudyKey]:
        """Return the studies that have a record, committed or quarantined, sorted.

        Files below ``records`` that are not named by a study are ignored.
        """
        keys = self.objects.find(_RECORDS)
        names = (key.removeprefix(f"{_RECORDS}/") for key in keys if key.endswith(_RECORD_END))
        studies = (name.removesuffix(_RECORD_END) for name in names)
        return sorted(StudyKey(study) for study in studies if StudyKey.is_valid(study))

    def record(self, study: str) -> StudyRecord:
        """Read one record.

        Raises
        ------
        StoreError
            ``record-missing``, ``record-invalid`` or ``schema-unsupported``.
        """
        key = _record_key(StudyKey(study))
        return _check_study(StudyRecord.from_bytes(self._get_record(key), key), study, key)

    def records(self, studies: Iterable[str] | None = None) -> Iterator[StudyRecord]:
        """Read many records, several in flight, in the order of the studies."""
        chosen = self.studies() if studies is None else list(studies)
        with ThreadPoolExecutor(REQUESTS) as pool:
            yield from pool.map(self.record, chosen)

    def heads(self) -> Iterator[RecordHead | StoreError]:
        """What resume needs of each record, several in flight; or what is wrong with it."""

        def read(study: StudyKey) -> RecordHead | StoreError:
            key = _record_key(study)
            try:
                return _check_study(RecordHead.from_bytes(self._get_record(key), key), study, key)
            except StoreError as error:
                return error

        with ThreadPoolExecutor(REQUESTS) as pool:
            yield from pool.map(read, self.studies())

    # ---- arrays --------------------------------------------------------------------------------

    def read_array(self, path: str) -> crops.Voxels:
        """Read an array by its key below ``volumes.zarr``, every byte of it checked.

        Returns
        -------
        ndarray, shape (z, y, x), int16 or uint8

        Raises
        ------
        StoreError
            ``array-missing``, ``array-damaged`` or ``metadata-damaged``, naming the array.
        """
        layout = crops.read_layout(self._get(f"{VOLUMES}/{path}/zarr.json", path), path)
        return crops.decode_shard(self._get_shard(path), layout, path)

    def read_slabs(self, path: str, layout: crops.ArrayLayout) -> Iterator[crops.Voxels]:
        """Read an array whose shape and dtype are known, from a table or a record: one request.

        Yields
        ------
        ndarray, shape (slices, y, x)
            z ascending; each is written over the one before.

        Raises
        ------
        StoreError
            ``array-missing`` or ``array-damaged``; a wrong layout reads as damage too.
        """
        return crops.decode_slabs(self._get_shard(path), layout, path)

    def read_crop(self, study: str, level: str, *, mask: bool = True) -> Crop:
        """Read one vertebra, with its mask where one is stored (and `mask` asks for it).

        Raises
        ------
        StoreError
            As `read_array`.
        """
        path = f"{StudyKey(study)}/{level}"
        block = self.read_attributes(path).get("cspine", {})
        if block.get("schema") != crops.SCHEMA:
            found = block.get("schema")
            raise StoreError("schema-unsupported", f"{found!r}, not {crops.SCHEMA!r}", key=path)
        hu = self.read_array(f"{path}/0")
        inside = self.read_array(f"{path}/labels/vertebra/0") if mask and block["masked"] else None
        try:
            geometry = StackGeometry.from_json(block["geometry"])
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError("metadata-damaged", f"geometry: {error}", key=path) from None
        for array in (hu, inside):
            if array is not None and array.shape != geometry.shape:
                raise StoreError(
                    "array-mismatch", f"{array.shape}, expected {geometry.shape}", key=path
                )
        return Crop(
            hu=hu.astype(np.int16, copy=False),
            mask=None if inside is None else inside.astype(np.uint8, copy=False),
            geometry=geometry,
            attributes=block,
        )

    def read_overview(self, study: str) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
        """Read the overview and its matrix (4, 4) from (z, y, x) indices to LPS mm."""
        path = f"{StudyKey(study)}/{OVERVIEW}"
        block = self.read_attributes(path).get("cspine", {})
        affine = np.asarray(block.get("affine"), np.float64)
        if affine.shape != (4, 4):
            raise StoreError("metadata-damaged", "no affine", key=path)
        return self.read_array(path).astype(np.int16, copy=False), affine

    def read_overview_levels(self, study: str) -> NDArray[np.uint8]:
        """Read the vertebrae of the study's mask, on the grid of its overview.

        Returns
        -------
        ndarray, shape of the overview, uint8
            `storage_schemas.vertebrae.LEVEL_NUMBERS`, 0 elsewhere.

        Raises
        ------
        StoreError
            ``array-missing`` where the study had no mask, else as `read_array`.
        """
        path = f"{StudyKey(study)}/{OVERVIEW_LEVELS}"
        return self.read_array(path).astype(np.uint8, copy=False)

    def read_attributes(self, path: str) -> dict[str, Any]:
        """Read the attributes of a group or array below ``volumes.zarr``."""
        return crops.read_attributes(self._get(f"{VOLUMES}/{path}/zarr.json", path), path)

    def check(self, record: StudyRecord) -> list[StoreError]:
        """Prove every array and metadata file of a study against its record.

        Returns
        -------
        list of StoreError
            One for each array or ``zarr.json`` that is missing, damaged or another; empty if whole.
        """
        damage = []
        for array in record.arrays:
            try:
                self._check_array(array)
            except StoreError as error:
                damage.append(error)
        for key, digest in record.metadata:
            try:
                data = self._get(f"{VOLUMES}/{key}", key)
            except StoreError as error:
                damage.append(error)
                continue
            if hashlib.sha256(data).hexdigest() != digest:
                damage.append(StoreError("metadata-damaged", "its digest does not hold", key=key))
        return damage

    def _check_array(self, array: StoredArray) -> None:
        data = self.read_array(array.path)
        if data.shape != array.shape or sha256_voxels(data) != array.sha256:
            raise StoreError("array-mismatch", "not the array of the record", key=array.path)

    # ---- tables and other documents ------------------------------------------------------------

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write one table of `storage_schemas.catalog.TABLES`, whole or not at all."""
        buffer = io.BytesIO()
        pq.write_table(check_table(name, table, name), buffer, compression="zstd")
        self.objects.put(_table_key(name), buffer.getvalue())

    def write_log(self, name: str, lines: list[str]) -> None:
        """Write the log of a run, one JSON line an event; the only place for times and rates."""
        self.objects.put(f"logs/{name}.jsonl", "".join(f"{line}\n" for line in lines).encode())

    def logs(self) -> Iterator[tuple[str, list[str]]]:
        """The logs of all runs, oldest first: each one's name and lines."""
        for key in self.objects.find("logs"):
            if key.endswith(".jsonl"):
                lines = self.objects.get(key).decode(errors="replace").splitlines()
                yield key.removeprefix("logs/").removesuffix(".jsonl"), lines

    def read_table(self, name: str) -> pa.Table:
        """Read one table.

        Raises
        ------
        StoreError
            ``table-missing``, ``table-invalid`` or ``schema-unsupported``.
        """
        key = _table_key(name)
        try:
            data = self.objects.get(key)
        except FileNotFoundError:
            raise StoreError("table-missing", "no such table", key=key) from None
        try:
            # By this thread alone: one of Arrow's own that still held the file when the interpreter
            # ends would abort the process.
            table = pq.ParquetFile(io.BytesIO(data)).read(use_threads=False)
        except (pa.ArrowInvalid, OSError) as error:
            raise StoreError("table-invalid", f"no Parquet file: {error}", key=key) from None
        return check_table(name, table, key)

    def targets(self) -> Targets:
        """Return the labels that the store's tables hold; the competition's where there are none.

        Raises
        ------
        StoreError
            ``table-invalid`` or ``schema-unsupported``.
        """
        try:
            return read_targets(self.read_table("studies").schema, _table_key("studies"))
        except StoreError as error:
            if error.kind != "table-missing":
                raise
            return COMPETITION

    def _get_record(self, key: str) -> bytes:
        try:
            return self.objects.get(key)
        except FileNotFoundError:
            raise StoreError("record-missing", "the study has no record", key=key) from None

    def _get_shard(self, path: str) -> bytes:
        return self._get(f"{VOLUMES}/{path}/c/0/0/0", path)

    def _get(self, key: str, path: str) -> bytes:
        try:
            return self.objects.get(key)
        except FileNotFoundError:
            missing = f"there is no object {key}"
            raise StoreError("array-missing", missing, key=path) from None


def _check_study(record: Read, study: str, key: str) -> Read:
    if record.study != study:
        raise StoreError("record-invalid", f"it is the record of {record.study}", key=key)
    return record


def _record_key(study: StudyKey) -> str:
    return f"{_RECORDS}/{study}{_RECORD_END}"


def _table_key(name: str) -> str:
    return f"catalog/{name}.parquet"
