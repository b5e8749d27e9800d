"""Build the tables of a store from its records, and join the labels that the user gives."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from pipeline.dicom.stack import Orientation
from storage_schemas.annotations import FractureBox
from storage_schemas.canonical import sha256_json
from storage_schemas.catalog import TABLES, make_table
from storage_schemas.errors import StoreError
from storage_schemas.outcomes import is_refused, is_unused
from storage_schemas.records import (
    CROPPED,
    STORED,
    RecordHead,
    StudyRecord,
    StudyVolumeRecord,
    Vertebra,
)
from storage_schemas.store import OVERVIEW_LEVELS, StudyStore
from storage_schemas.targets import COMPETITION, Targets

Row = dict[str, Any]
_RECORDS_AT_ONCE = 64
_ORIGIN = b"origin"
"""Metadata key of each table for the digest of the records and annotations it was built from."""


@dataclass(frozen=True)
class Annotations:
    """Labels and boxes that the user gives in addition to the DICOM files.

    Parameters
    ----------
    labels : mapping
        Labels of each study, by column name.
    boxes : mapping
        Boxes around the fractures of each study; a study without an entry has no boxes.
    targets : Targets
        Labels that the tables have.
    """

    labels: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    boxes: Mapping[str, list[FractureBox]] = field(default_factory=dict)
    targets: Targets = COMPETITION


def build_tables(store: StudyStore, annotations: Annotations) -> dict[str, int]:
    """Rebuild all tables of a store.

    Parameters
    ----------
    store : StudyStore
        Store whose records are read, and to which the tables are written.
    annotations : Annotations
        Labels and boxes; without them, their columns are null.

    Returns
    -------
    dict of str to int
        Number of rows by table.
    """
    origin = _origin(records_sha256(store.heads()), annotations)
    targets = annotations.targets
    parts: dict[str, list[pa.Table]] = {name: [make_table(name, [], targets)] for name in TABLES}
    records = store.records()
    # In parts, since rows of Python objects take ten times the memory of columns.
    while some := list(islice(records, _RECORDS_AT_ONCE)):
        rows = {
            "studies": [_study_row(r, annotations) for r in some],
            "vertebrae": [row for r in some for row in _vertebra_rows(r, annotations)],
            "slices": [row for r in some for row in _slice_rows(r, annotations)],
            "series": [row for r in some for row in _series_rows(r)],
            "quarantine": [row for r in some for row in _quarantine_rows(r)],
        }
        for name, part in rows.items():
            parts[name].append(make_table(name, part, targets))
    tables = {name: pa.concat_tables(several) for name, several in parts.items()}
    for name, table in tables.items():
        metadata = {**table.schema.metadata, _ORIGIN: origin}
        store.write_table(name, table.replace_schema_metadata(metadata))
    return {name: table.num_rows for name, table in tables.items()}


def refresh_tables(store: StudyStore, annotations: Annotations, records: str) -> None:
    """Rebuild all tables unless they were built from these records and annotations.

    Parameters
    ----------
    store : StudyStore
        Store whose records are read, and to which the tables are written.
    annotations : Annotations
        Labels and boxes; without them, their columns are null.
    records : str
        Digest of the current records, from `records_sha256`.
    """
    try:
        *_, last = TABLES  # written last
        built = store.read_table(last).schema.metadata.get(_ORIGIN)
    except StoreError:
        built = None
    if built != _origin(records, annotations):
        build_tables(store, annotations)


def records_sha256(heads: Iterable[RecordHead | StoreError]) -> str:
    """Digest of the records of a store; damaged ones count by their names.

    Parameters
    ----------
    heads : iterable of RecordHead or StoreError
        Heads of the records, from `StudyStore.heads`.
    """
    return sha256_json(
        [(h.study, h.sha256) if isinstance(h, RecordHead) else (h.key, h.kind) for h in heads]
    )


def _origin(records: str, annotations: Annotations) -> bytes:
    given = asdict(annotations) | {"targets": annotations.targets.to_json()}
    if annotations.targets == COMPETITION:
        del given["targets"]  # the default, which older stores do not mention
    return sha256_json([records, given]).encode()


def _study_row(record: StudyRecord, annotations: Annotations) -> Row:
    labels = annotations.labels.get(record.study, {})
    row: Row = {
        "study": record.study,
        "patient": record.patient,
        "outcome": record.outcome,
        "kind": record.kind,
        "objects": len(record.inputs),
        "refused": sum(is_refused(entry.outcome) for entry in record.inputs),
        "unused": sum(is_unused(entry.outcome) for entry in record.inputs),
        "source_bytes": sum(entry.size for entry in record.inputs),
        **{name: labels.get(name) for name in annotations.targets.columns},
    }
    volume = record.volume
    if volume is None:
        return row
    stored = [entry for entry in record.inputs if entry.outcome == STORED]
    slices, rows, columns = volume.geometry.shape
    return (
        row
        | _spacing(volume)
        | {
            "series": volume.series,
            "scanner": volume.scanner,
            "slices": slices,
            "rows": rows,
            "columns": columns,
            "tilt_degrees": volume.geometry.tilt_degrees,
            "geometry": "+".join(volume.geometry.classes),
            "transfer_syntax": "+".join(sorted({entry.transfer_syntax for entry in stored})),
            "decoder": "+".join(sorted({entry.decoder for entry in stored})),
            "localizer": record.localizer,
            "overview_levels": any(
                array.path == f"{record.study}/{OVERVIEW_LEVELS}" for array in record.arrays
            ),
            "hu_sha256": volume.hu_sha256,
        }
    )


def _spacing(volume: StudyVolumeRecord) -> Row:
    z, y, x = volume.geometry.spacing
    return {"spacing_z_mm": z, "spacing_y_mm": y, "spacing_x_mm": x}


def _quarantine_rows(record: StudyRecord) -> list[Row]:
    rows: list[Row] = [
        {"study": record.study, "key": entry.key, "kind": entry.outcome, "reason": entry.reason}
        for entry in record.inputs
        if is_refused(entry.outcome)
    ]
    if record.outcome == "quarantined":
        rows.insert(
            0, {"study": record.study, "key": None, "kind": record.kind, "reason": record.reason}
        )
    return rows


def _as_int64(number: int | None) -> int | None:
    """A number from a header that fits its column, else null: it is a label and no more."""
    return number if number is not None and -(1 << 63) <= number < 1 << 63 else None


def _series_rows(record: StudyRecord) -> list[Row]:
    return [{"study": record.study, **asdict(part)} for part in record.series]


def _vertebra_rows(record: StudyRecord, annotations: Annotations) -> list[Row]:
    if record.volume is None:
        return []
    labels = annotations.labels.get(record.study, {})
    arrays = {array.path: array for array in record.arrays}
    rows = []
    for vertebra in record.vertebrae:
        path = f"{record.study}/{vertebra.level}"
        row: Row = {
            "study": record.study,
            "patient": record.patient,
            "scanner": record.volume.scanner,
            "level": vertebra.level,
            "outcome": vertebra.outcome,
            "reason": vertebra.reason,
            "masked": f"{path}/labels/vertebra/0" in arrays,
            "fractured": labels.get(vertebra.level),
        }
        if vertebra.box is not None:
            array = arrays[f"{path}/0"]
            bounds = dict(zip(("z0", "z1", "y0", "y1", "x0", "x1"), vertebra.box, strict=True))
            row |= bounds | _spacing(record.volume)
            row |= {
                "voxels": vertebra.voxels,
                "mean_hu": vertebra.mean_hu,
                "score": vertebra.score,
                "sha256": array.sha256,
                "stored_bytes": array.size,
            }
        rows.append(row)
    return rows


def _slice_rows(record: StudyRecord, annotations: Annotations) -> list[Row]:
    volume = record.volume
    if volume is None:
        return []
    labels = annotations.labels.get(record.study, {})
    drawn = record.study in annotations.boxes
    boxes = _boxes_by_slice(volume, annotations.boxes.get(record.study, []))
    crops = [vertebra for vertebra in record.vertebrae if vertebra.outcome == CROPPED]
    rows = []
    for z, (origin, position) in enumerate(
        zip(volume.slices, volume.geometry.positions, strict=True)
    ):
        common: Row = {
            "study": record.study,
            "z": z,
            "key": origin.key,
            "frame": origin.frame,
            "instance_number": _as_int64(origin.instance_number),
            "x_mm": position[0],
            "y_mm": position[1],
            "z_mm": position[2],
        }
        containing = [crop for crop in crops if crop.box and crop.box[0] <= z < crop.box[1]]
        if not containing:
            rows.append(common)
        here = boxes.get(z, [])
        fractured = [crop for crop in containing if labels.get(crop.level)]
        assigned = _assign_boxes(here, fractured, z)
        for crop in containing:
            assert crop.box is not None
            own = assigned.get(crop.level, [])
            label = labels.get(crop.level)
            rows.append(
                common
                | {"level": crop.level, "crop_z": z - crop.box[0]}
                | {"fractured": _slice_label(label, drawn=drawn, shown=bool(own))}
                | (_union(own, crop.box) if own else {})
            )
    return rows


def _slice_label(label: int | None, *, drawn: bool, shown: bool) -> int | None:
    """Whether a slice shows its vertebra's fracture; None for a fracture without boxes."""
    if label is None or label == 0:
        return label
    return int(shown) if drawn else None


def _boxes_by_slice(
    volume: StudyVolumeRecord, boxes: list[FractureBox]
) -> dict[int, list[FractureBox]]:
    """Convert boxes to slices and pixels of the canonical volume, by z."""
    # In the competition, slice numbers are file names, which are equal to the instance numbers;
    # with hashed keys, only the latter are known.
    by_instance = {origin.instance_number: z for z, origin in enumerate(volume.slices)}
    by_name = {PurePosixPath(origin.key).stem: z for z, origin in enumerate(volume.slices)}
    orientation = Orientation(volume.transposed, volume.flipped)
    rows, columns = volume.geometry.shape[1:]
    stored_shape = (columns, rows) if volume.transposed else (rows, columns)
    by_slice: dict[int, list[FractureBox]] = {}
    for box in boxes:
        z = by_name.get(str(box.slice_number), by_instance.get(box.slice_number))
        if z is None:
            continue
        x, y, width, height = orientation.map_rectangle(
            (box.x, box.y, box.width, box.height), stored_shape
        )
        moved = FractureBox(x, y, width, height, box.slice_number)
        by_slice.setdefault(z, []).append(moved)
    return by_slice


def _assign_boxes(
    boxes: list[FractureBox], fractured: list[Vertebra], z: int
) -> dict[str, list[FractureBox]]:
    """Assign each box to a fractured vertebra: boxes have no level, and adjacent ones share slices.

    It is the vertebra with the nearest centre in z among those whose extent contains the centre of
    the box.
    """
    assigned: dict[str, list[FractureBox]] = {}
    for box in boxes:
        x, y = box.x + box.width / 2, box.y + box.height / 2
        around = []
        for vertebra in fractured:
            assert vertebra.extent is not None
            z0, z1, y0, y1, x0, x1 = vertebra.extent
            if z0 <= z < z1 and y0 <= y <= y1 and x0 <= x <= x1:
                around.append((abs(z - (z0 + z1 - 1) / 2), vertebra.level))
        if around:
            assigned.setdefault(min(around)[1], []).append(box)
    return assigned


def _union(boxes: list[FractureBox], crop: tuple[int, int, int, int, int, int]) -> Row:
    """Bounding rectangle of the boxes, in pixels of the crop."""
    x0 = min(box.x for box in boxes)
    y0 = min(box.y for box in boxes)
    return {
        "box_x": x0 - crop[4],
        "box_y": y0 - crop[2],
        "box_width": max(box.x + box.width for box in boxes) - x0,
        "box_height": max(box.y + box.height for box in boxes) - y0,
    }
