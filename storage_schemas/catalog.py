"""The columns of the store's Parquet tables.

Tables are derived: `pipeline.tables` rebuilds all of them from the records and, for the labels,
the csv files of `storage_schemas.annotations`. Arrays do not depend on them, so new labels change
no array. The metadata of each table hold the version of the schema and, where they are not the
competition's, the `Targets` whose labels the tables hold.
"""

import hashlib
import io
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage_schemas.canonical import canonical_json
from storage_schemas.errors import StoreError, UsageError
from storage_schemas.targets import COMPETITION, Targets

SCHEMA_VERSION = "cspine-catalog/2"
_FIRST_VERSION = "cspine-catalog/1"
"""The version before unused objects were counted; its tables are read, with null in that column."""


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


_STUDIES = pa.schema(
    [
        _required("study", pa.string()),
        _required("patient", pa.string()),
        _required("outcome", pa.string()),  # committed or quarantined
        _required("kind", pa.string()),  # of the quarantine, else empty
        _required("objects", pa.int32()),  # listed in the source
        _required("refused", pa.int32()),  # of these, in quarantine
        pa.field("unused", pa.int32()),  # of these, no part of the stack and in order
        _required("source_bytes", pa.int64()),
        pa.field("series", pa.string()),
        pa.field("scanner", pa.string()),
        pa.field("slices", pa.int32()),
        pa.field("rows", pa.int32()),
        pa.field("columns", pa.int32()),
        pa.field("spacing_z_mm", pa.float64()),
        pa.field("spacing_y_mm", pa.float64()),
        pa.field("spacing_x_mm", pa.float64()),
        pa.field("tilt_degrees", pa.float64()),
        pa.field("geometry", pa.string()),  # classes, joined by "+"
        pa.field("transfer_syntax", pa.string()),  # joined by "+"
        pa.field("decoder", pa.string()),  # joined by "+"
        pa.field("localizer", pa.string()),
        pa.field("overview_levels", pa.bool_()),  # whether its mask is stored on the overview
        pa.field("hu_sha256", pa.string()),
    ]
)
"""One row for each study that has a record; after these columns one for each label, null where
unknown."""

_VERTEBRAE = pa.schema(
    [
        _required("study", pa.string()),
        _required("patient", pa.string()),
        _required("scanner", pa.string()),
        _required("level", pa.string()),
        _required("outcome", pa.string()),  # cropped, or a kind
        _required("reason", pa.string()),
        *(pa.field(f"{axis}{end}", pa.int32()) for axis in "zyx" for end in (0, 1)),
        pa.field("spacing_z_mm", pa.float64()),
        pa.field("spacing_y_mm", pa.float64()),
        pa.field("spacing_x_mm", pa.float64()),
        pa.field("voxels", pa.int64()),
        pa.field("mean_hu", pa.float64()),
        pa.field("score", pa.float64()),
        _required("masked", pa.bool_()),  # whether a mask is stored beside the crop
        pa.field("sha256", pa.string()),
        pa.field("stored_bytes", pa.int64()),
        pa.field("fractured", pa.int8()),
    ]
)
"""One row for each level that the run was to crop, in each committed study; z0..x1 is the crop in
the volume."""

_SLICES = pa.schema(
    [
        _required("study", pa.string()),
        _required("z", pa.int32()),  # in the volume, from 0 at the feet
        _required("key", pa.string()),  # the object that it came from
        _required("frame", pa.int32()),
        pa.field("instance_number", pa.int64()),
        _required("x_mm", pa.float64()),  # LPS position of its first voxel
        _required("y_mm", pa.float64()),
        _required("z_mm", pa.float64()),
        pa.field("level", pa.string()),  # null where no crop holds it
        pa.field("crop_z", pa.int32()),
        pa.field("fractured", pa.int8()),  # of this level in this slice; null where unknown
        pa.field("box_x", pa.float64()),  # in pixels of the crop; null where no box
        pa.field("box_y", pa.float64()),
        pa.field("box_width", pa.float64()),
        pa.field("box_height", pa.float64()),
    ]
)
"""One row for each slice and each crop that holds it; slices in no crop have one row."""

_SERIES = pa.schema(
    [
        _required("study", pa.string()),
        _required("series", pa.string()),  # SeriesInstanceUID; may be empty
        pa.field("number", pa.int32()),
        _required("objects", pa.int32()),
        _required("slices", pa.int32()),
        _required("image", pa.string()),  # original, derived, reformat, ...
        _required("kernel", pa.string()),  # sharp, medium, soft or unknown
        _required("chosen", pa.bool_()),
        _required("reason", pa.string()),
    ]
)
"""One row for each part of a study that could have been read: the frames of a series that belong
together, be they a stack or not."""

_QUARANTINE = pa.schema(
    [
        _required("study", pa.string()),
        pa.field("key", pa.string()),  # null where the whole study is meant
        _required("kind", pa.string()),
        _required("reason", pa.string()),
    ]
)
"""One row for each refused object, and one for each refused study."""

_FIXED: Mapping[str, pa.Schema] = {
    "studies": _STUDIES,
    "vertebrae": _VERTEBRAE,
    "slices": _SLICES,
    "series": _SERIES,
    "quarantine": _QUARANTINE,
}
TABLES = tuple(_FIXED)
"""Names of the tables, in the order in which they are written."""
_SCHEMA, _TARGETS, _DIGEST = b"schema", b"targets", b"sha256"


def table_schema(name: str, targets: Targets) -> pa.Schema:
    """Return the columns of one of `TABLES`, without metadata.

    Parameters
    ----------
    name : str
        Name of a table in `TABLES`.
    targets : Targets
        Targets that give ``studies`` its label columns; other tables do not depend on them.

    Raises
    ------
    UsageError
        ``config-invalid`` where the patient's label has the name of another column.
    """
    schema = _FIXED[name]
    if name != "studies":
        return schema
    if targets.patient in schema.names:
        reason = f"a target may not be named {targets.patient!r}: the table has that column"
        raise UsageError("config-invalid", reason)
    return pa.schema([*schema, *(pa.field(label, pa.int8()) for label in targets.columns)])


def make_table(name: str, rows: list[dict[str, object]], targets: Targets) -> pa.Table:
    """Make a table from rows.

    Parameters
    ----------
    name : str
        Name of a table in `TABLES`.
    rows : list of dict
        Values by column; a column that is not given is null.
    targets : Targets
        Targets of the labels; they are named in the metadata unless they are the competition's.

    Raises
    ------
    pyarrow.ArrowException
        Where a row does not fit the columns.
    """
    metadata = {_SCHEMA: SCHEMA_VERSION.encode()}
    if targets != COMPETITION:
        metadata[_TARGETS] = canonical_json(targets.to_json()).strip()
    schema = table_schema(name, targets).with_metadata(metadata)
    table = pa.Table.from_pylist(rows, schema=schema)
    table.validate(full=True)
    return table


def read_targets(schema: pa.Schema, key: str) -> Targets:
    """Return the targets that a table's metadata name; the competition's where they name none.

    Parameters
    ----------
    schema : pyarrow.Schema
        Schema of a table as it was read, with its metadata.
    key : str
        Key of the table's file, for the message.

    Raises
    ------
    StoreError
        ``table-invalid`` where the metadata are no targets.
    """
    stored = (schema.metadata or {}).get(_TARGETS)
    if stored is None:
        return COMPETITION
    try:
        return Targets.from_text(stored)
    except ValueError as error:
        raise StoreError("table-invalid", f"its targets: {error}", key=key) from None


def check_table(name: str, table: pa.Table, key: str) -> pa.Table:
    """Return the table where it has the columns of its targets.

    A table of the first version gets the columns that were added since, with nulls.

    Parameters
    ----------
    name : str
        Name of a table in `TABLES`.
    table : pyarrow.Table
        Table as it was read, with its metadata.
    key : str
        Key of the table's file, for the message.

    Raises
    ------
    StoreError
        ``schema-unsupported`` where another version wrote it, ``table-invalid`` where it has other
        columns.
    """
    version = (table.schema.metadata or {}).get(_SCHEMA, b"").decode(errors="replace")
    if version not in (SCHEMA_VERSION, _FIRST_VERSION):
        raise StoreError("schema-unsupported", f"{version!r}, not {SCHEMA_VERSION!r}", key=key)
    if version == _FIRST_VERSION and name == "studies" and "unused" not in table.schema.names:
        place = _STUDIES.get_field_index("unused")
        nulls = pa.nulls(table.num_rows, pa.int32())
        table = table.add_column(place, _STUDIES.field(place), nulls)
    try:
        expected = table_schema(name, read_targets(table.schema, key))
    except UsageError as error:
        raise StoreError("table-invalid", error.detail, key=key) from None
    if not table.schema.equals(expected):
        raise StoreError("table-invalid", f"columns {table.schema.names}", key=key)
    return table


def encode_table(name: str, table: pa.Table) -> bytes:
    """Check a table with `check_table`, and encode it as a Parquet file."""
    buffer = io.BytesIO()
    sealed = seal_table(check_table(name, table, name))
    pq.write_table(sealed, buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()


def decode_table(name: str, data: bytes, key: str) -> pa.Table:
    """Decode a Parquet file, and check the table with `check_table`.

    Parameters
    ----------
    name : str
        Name of a table in `TABLES`.
    data : bytes
        Content of the file.
    key : str
        Key of the file, for the message.

    Raises
    ------
    StoreError
        ``table-invalid`` where the bytes are no Parquet file, else those of `check_table`.
    """
    try:
        # In this thread alone: a thread of Arrow that still holds the file when the interpreter
        # exits aborts the process.
        file = pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True)
        return check_table(name, unseal_table(file.read(use_threads=False), key), key)
    except (pa.ArrowException, OSError, ValueError, KeyError, MemoryError) as error:
        raise StoreError("table-invalid", f"no Parquet file: {error}", key=key) from None


def seal_table(table: pa.Table) -> pa.Table:
    """Add a digest of a table's rows and metadata to its metadata; `unseal_table` checks it."""
    metadata = table.schema.metadata or {}
    return table.replace_schema_metadata({**metadata, _DIGEST: _digest(table)})


def unseal_table(table: pa.Table, key: str) -> pa.Table:
    """Return a table without its digest, which is checked.

    Page checksums of Parquet find damaged pages; the digest also finds what they do not cover, such
    as metadata and statistics. A table of an older version has no digest and is returned as it is.

    Parameters
    ----------
    table : pyarrow.Table
        Table as it was read, with its metadata.
    key : str
        The table's file, for the message.

    Raises
    ------
    StoreError
        ``table-invalid`` where the rows or the metadata are others than those that were written.
    """
    metadata = dict(table.schema.metadata or {})
    expected = metadata.pop(_DIGEST, None)
    bare = table.replace_schema_metadata(metadata)
    if expected is not None and _digest(bare) != expected:
        raise StoreError("table-invalid", "its digest does not match its content", key=key)
    return bare


def _digest(table: pa.Table) -> bytes:
    """SHA-256 of a table's metadata, and of each column's name, type, nulls and values.

    It depends on the values alone, not on how Arrow happens to lay them out in memory.
    """
    digest = hashlib.sha256()
    for key, value in sorted((table.schema.metadata or {}).items()):
        digest.update(b"%d:%s=%d:%s;" % (len(key), key, len(value), value))
    for field in table.schema:
        column = table[field.name].combine_chunks()
        digest.update(f"{field.name}:{field.type}:{len(column)};".encode())
        digest.update(np.packbits(column.is_null().to_numpy(zero_copy_only=False)).data)
        if pa.types.is_string(field.type):
            text = column.fill_null("").cast(pa.large_binary())
            text = pa.concat_arrays([text])
            _, ends, data = text.buffers()
            offsets = np.frombuffer(ends, np.int64)[text.offset : text.offset + len(text) + 1]
            digest.update(np.diff(offsets).data)
            if data is not None:
                digest.update(memoryview(data)[offsets[0] : offsets[-1]])
        else:
            kind = pa.uint8() if pa.types.is_boolean(field.type) else field.type
            plain = column.cast(kind).fill_null(pa.scalar(0, kind))
            digest.update(np.ascontiguousarray(plain.to_numpy(zero_copy_only=False)).data)
    return digest.hexdigest().encode()
