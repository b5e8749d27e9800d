"""The columns of the store's tables, and their files.

Tables are derived: `pipeline.tables` rebuilds all of them from the records and, for the labels,
the competition's csv files. Pixels never depend on them, so new labels never touch pixels.
"""

import pyarrow as pa

from storage_schemas.errors import StoreError
from storage_schemas.vertebrae import LABEL_COLUMNS

SCHEMA_VERSION = "cspine-catalog/1"


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


STUDIES = pa.schema(
    [
        _required("study", pa.string()),
        _required("patient", pa.string()),
        _required("outcome", pa.string()),  # committed or quarantined
        _required("kind", pa.string()),  # of the quarantine, else empty
        _required("objects", pa.int32()),  # listed in the source
        _required("refused", pa.int32()),  # of these, in quarantine
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
        *(pa.field(name, pa.int8()) for name in LABEL_COLUMNS),
    ]
)
"""One row for each study that has a record; labels are null where unknown."""

VERTEBRAE = pa.schema(
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
"""One row for each level asked for in each committed study; z0..x1 is the crop in the volume."""

SLICES = pa.schema(
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

QUARANTINE = pa.schema(
    [
        _required("study", pa.string()),
        pa.field("key", pa.string()),  # null where the whole study is meant
        _required("kind", pa.string()),
        _required("reason", pa.string()),
    ]
)
"""One row for each refused object, and one for each refused study."""

TABLES = {
    "studies": STUDIES,
    "vertebrae": VERTEBRAE,
    "slices": SLICES,
    "quarantine": QUARANTINE,
}


def make_table(name: str, rows: list[dict[str, object]]) -> pa.Table:
    """Make a table of `TABLES` from rows; raises pyarrow's errors where a row does not fit."""
    schema = TABLES[name].with_metadata({"schema": SCHEMA_VERSION})
    table = pa.Table.from_pylist(rows, schema=schema)
    table.validate(full=True)
    return table


def check_table(name: str, table: pa.Table, key: str) -> pa.Table:
    """Return the table, or raise StoreError ``table-invalid`` where its columns are others."""
    version = (table.schema.metadata or {}).get(b"schema", b"").decode(errors="replace")
    if version != SCHEMA_VERSION:
        raise StoreError("schema-unsupported", f"{version!r}, not {SCHEMA_VERSION!r}", key=key)
    if not table.schema.equals(TABLES[name]):
        raise StoreError("table-invalid", f"columns {table.schema.names}", key=key)
    return table
