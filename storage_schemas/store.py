"""The store: keys of its objects, and operations to commit, list, read and verify studies.

No other module builds a key. The layout is

::

    volumes.zarr/<study>/overview           the study downsampled to one small cube
    volumes.zarr/<study>/overview_levels    its vertebrae on the same grid, where it has a mask
    volumes.zarr/<study>/<level>            the crop: an OME-Zarr image, with its mask as a label
    records/<study>.json                    written last: a study exists when its record does
    catalog/<table>.parquet                 derived from the records
    logs/<start>.jsonl                      timings of each run; only reports read them

A store may be at any fsspec URL. Not here: the content of the objects (`arrays`,
`crops`, `records`, `catalog`).
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from storage_schemas import arrays, crops
from storage_schemas.canonical import sha256_voxels
from storage_schemas.catalog import decode_table, encode_table, read_targets
from storage_schemas.crops import Crop
from storage_schemas.errors import StoreError, UsageError, reason_of
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


class StudyStore:
    """A store at an fsspec URL.

    Parameters
    ----------
    url : str
        fsspec URL, for example ``out/store`` or ``s3://bucket/store``. Credentials come from the
        environment.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.objects = ObjectFolder(url)

    @classmethod
    def create(cls, url: str) -> "StudyStore":
        """Open a store for writing; create it where there is none.

        Parameters
        ----------
        url : str
            fsspec URL.

        Raises
        ------
        UsageError
            ``store-unwritable`` where nothing can be written there.
        StoreError
            ``schema-unsupported`` where another version wrote it.
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

        Parameters
        ----------
        url : str
            fsspec URL.

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
        crops.check_schema(crops.read_attributes(self._get(path, path), path), STORE_SCHEMA, path)

    # ---- studies -------------------------------------------------------------------------------

    def commit(self, record: StudyRecord, objects: Mapping[str, bytes]) -> None:
        """Write a study: its objects first, its record last.

        An earlier version of the study is removed before that, its record first.

        Parameters
        ----------
        record : StudyRecord
            An earlier record of the same study is removed first, and whatever of its arrays the
            study no longer has. Two processes that commit the same bytes at the same moment leave
            them whole.
        objects : mapping of str to bytes
            Objects by key below ``volumes.zarr``; every key begins with the study.

        Raises
        ------
        ValueError
            Where a key is not below the study.
        OSError
            Where an object cannot be written; then the study has no record.
        """
        study = record.study
        if strays := [key for key in objects if not key.startswith(f"{study}/")]:
            raise ValueError(f"{study} must not write {strays[0]}")
        arrays = {f"{VOLUMES}/{key}": data for key, data in objects.items()}
        self.objects.remove(_record_key(study))
        self.objects.put_all(arrays)
        self._remove_strays(study, arrays)
        self.objects.sync(arrays)  # no record may be there before what it vouches for
        self.objects.put(_record_key(study), record.to_bytes())
        self.objects.sync([_record_key(study)])

    def _remove_strays(self, study: str, arrays: Mapping[str, bytes]) -> None:
        """Remove what lies below a study's folder and is not of its arrays."""
        folder = f"{VOLUMES}/{study}"
        parts = len(folder.split("/")) + 1
        mine = {"/".join(key.split("/")[:parts]) for key in arrays}
        found = [key for key in self.objects.find(folder) if key not in arrays]
        # Whole levels at once, so that a disk keeps no empty folders.
        tops = {"/".join(key.split("/")[:parts]) for key in found}
        for key in sorted(tops - mine) + [
            k for k in found if "/".join(k.split("/")[:parts]) in mine
        ]:
            self.objects.remove(key)

    def discard(self, study: str) -> None:
        """Remove a study's record, then its arrays; does nothing where there are none."""
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
        """Read the record of a study.

        Parameters
        ----------
        study : str
            Key of the study.

        Raises
        ------
        StoreError
            ``record-missing``, ``record-invalid`` or ``schema-unsupported``.
        StudyError
            ``study-key-invalid`` where `study` is no key.
        """
        key = _record_key(StudyKey(study))
        return _check_study(StudyRecord.from_bytes(self._get_record(key), key), study, key)

    def records(self, studies: Iterable[str] | None = None) -> Iterator[StudyRecord]:
        """Read the records of some studies, `REQUESTS` at once.

        Parameters
        ----------
        studies : iterable of str, optional
            Keys of the studies; all studies of the store by default.

        Yields
        ------
        StudyRecord
            In the order of `studies`.

        Raises
        ------
        StoreError, StudyError
            Those of `record`.
        """
        chosen = self.studies() if studies is None else list(studies)
        with ThreadPoolExecutor(REQUESTS) as pool:
            yield from pool.map(self.record, chosen)

    def heads(self) -> Iterator[RecordHead | StoreError]:
        """Read the head of every record, `REQUESTS` at once.

        Yields
        ------
        RecordHead or StoreError
            In the order of the studies; the error where a record cannot be read.
        """

        def read(study: StudyKey) -> RecordHead | StoreError:
            key = _record_key(study)
            try:
                return _check_study(RecordHead.from_bytes(self._get_record(key), key), study, key)
            except StoreError as error:
                return error

        with ThreadPoolExecutor(REQUESTS) as pool:
            yield from pool.map(read, self.studies())

    # ---- arrays --------------------------------------------------------------------------------

    def read_array(self, path: str) -> arrays.Voxels:
        """Read an array, and check every checksum.

        Parameters
        ----------
        path : str
            Key of the array below ``volumes.zarr``.

        Returns
        -------
        ndarray, shape (z, y, x), int16 or uint8

        Raises
        ------
        StoreError
            ``array-missing``, ``array-damaged`` or ``metadata-damaged``, naming the array.
        """
        layout = arrays.read_layout(self._get(f"{VOLUMES}/{path}/zarr.json", path), path)
        return arrays.decode_shard(self._get_shard(path), layout, path)

    def read_slabs(self, path: str, layout: arrays.ArrayLayout) -> Iterator[arrays.Voxels]:
        """Read an array of known layout chunk by chunk, in one request.

        Parameters
        ----------
        path : str
            Key of the array below ``volumes.zarr``.
        layout : ArrayLayout
            Shape and dtype, from a table or a record.

        Yields
        ------
        ndarray, shape (slices, y, x), int16 or uint8
            Slices of the next chunk, z ascending. All chunks share one buffer: the next one
            overwrites this one.

        Raises
        ------
        StoreError
            ``array-missing``, or ``array-damaged``, also where the layout is not the array's.
        """
        return arrays.decode_slabs(self._get_shard(path), layout, path)

    def read_crop(self, study: str, level: str, *, mask: bool = True) -> Crop:
        """Read one vertebra.

        Parameters
        ----------
        study : str
            Key of the study.
        level : str
            Name of the level, for example ``C1``.
        mask : bool
            Whether to read the mask, where one is stored.

        Raises
        ------
        StoreError
            Those of `read_array`; ``array-mismatch`` where an array does not fit the geometry.
        StudyError
            ``study-key-invalid`` where `study` is no key.
        """
        path = f"{StudyKey(study)}/{level}"
        attributes = self.read_attributes(path)
        block = crops.read_crop_block(attributes, path)
        hu = self.read_array(f"{path}/0")
        inside = self.read_array(f"{path}/labels/vertebra/0") if mask and block.masked else None
        expected = block.geometry.shape
        for array in (hu, inside):
            if array is not None and array.shape != expected:
                raise StoreError("array-mismatch", f"{array.shape}, expected {expected}", key=path)
        return Crop(
            hu=hu.astype(np.int16, copy=False),
            mask=None if inside is None else inside.astype(np.uint8, copy=False),
            geometry=block.geometry,
            attributes=attributes["cspine"],
        )

    def read_overview(self, study: str) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
        """Read the overview of a study: the whole volume, downsampled to one cube.

        Parameters
        ----------
        study : str
            Key of the study.

        Returns
        -------
        hu : ndarray, shape (z, y, x), int16, HU
        affine : ndarray, shape (4, 4), float64
            Matrix from homogeneous (z, y, x) indices to LPS (x, y, z) in mm.

        Raises
        ------
        StoreError
            Those of `read_array`.
        """
        path = f"{StudyKey(study)}/{OVERVIEW}"
        affine = crops.read_affine(self.read_attributes(path), path)
        return self.read_array(path).astype(np.int16, copy=False), affine

    def read_overview_levels(self, study: str) -> NDArray[np.uint8]:
        """Read the vertebrae of a study's mask, on the grid of its overview.

        Parameters
        ----------
        study : str
            Key of the study.

        Returns
        -------
        ndarray, shape (z, y, x), uint8
            Number of the level from `storage_schemas.vertebrae.LEVEL_NUMBERS`, 0 elsewhere.

        Raises
        ------
        StoreError
            ``array-missing`` where the study had no mask, else those of `read_array`.
        """
        path = f"{StudyKey(study)}/{OVERVIEW_LEVELS}"
        return self.read_array(path).astype(np.uint8, copy=False)

    def read_attributes(self, path: str) -> dict[str, Any]:
        """Read the attributes of a group or array below ``volumes.zarr``."""
        return crops.read_attributes(self._get(f"{VOLUMES}/{path}/zarr.json", path), path)

    def check(self, record: StudyRecord) -> list[StoreError]:
        """Compare every array and ``zarr.json`` of a study with its record.

        Parameters
        ----------
        record : StudyRecord
            Record of the study.

        Returns
        -------
        list of StoreError
            One for each object that is missing, damaged or not the one of the record.
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
        """Write a table atomically.

        Parameters
        ----------
        name : str
            Name of a table in `storage_schemas.catalog.TABLES`.
        table : pyarrow.Table
            Table made by `storage_schemas.catalog.make_table`.
        """
        self.objects.put(_table_key(name), encode_table(name, table))

    def write_log(self, name: str, lines: list[str]) -> None:
        """Write the log of a run: one line of JSON for each event, with its times and rates."""
        self.objects.put(f"logs/{name}.jsonl", "".join(f"{line}\n" for line in lines).encode())

    def logs(self) -> Iterator[tuple[str, list[str]]]:
        """Read the logs of all runs, oldest first; yields the name and the lines of each."""
        for key in self.objects.find("logs"):
            if key.endswith(".jsonl"):
                lines = self.objects.get(key).decode(errors="replace").splitlines()
                yield key.removeprefix("logs/").removesuffix(".jsonl"), lines

    def read_table(self, name: str) -> pa.Table:
        """Read a table.

        Parameters
        ----------
        name : str
            Name of a table in `storage_schemas.catalog.TABLES`.

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
        return decode_table(name, data, key)

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
