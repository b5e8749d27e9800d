"""Build the tables of a store from its records, and join the labels that the user gives."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import pyarrow as pa

from pipeline.slice_labels import BOX_UNPLACED, PlacedBoxes, place_boxes
from storage_schemas.annotations import FractureBox, Labels
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
)
from storage_schemas.store import OVERVIEW_LEVELS, StudyStore
from storage_schemas.targets import COMPETITION, Targets

Row = dict[str, Any]
_RECORDS_AT_ONCE = 64
_STAND_IN = "2.25."
_ORIGIN = b"origin"
"""Metadata key of each table for the digest of the records and annotations it was built from."""


@dataclass(frozen=True)
class Annotations:
    """Labels and boxes that the user gives in addition to the DICOM files.

    Parameters
    ----------
    labels : mapping
        Labels of each study, by column name, None where unknown. A study is named as in the
        source: by its UID, or by its folder.
    boxes : mapping
        Boxes around the fractures of each study; a study without an entry has no boxes.
    targets : Targets
        Labels that the tables have.
    """

    labels: Mapping[str, Labels] = field(default_factory=dict)
    boxes: Mapping[str, list[FractureBox]] = field(default_factory=dict)
    targets: Targets = COMPETITION

    def find(self, record: StudyRecord) -> tuple[Labels, list[FractureBox]]:
        """Return the labels and the boxes of a study; empty ones where none are given."""
        names = [record.study, *_folder_names(record)]
        labels = next((self.labels[name] for name in names if name in self.labels), {})
        return labels, next((self.boxes[name] for name in names if name in self.boxes), [])


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
        rows: dict[str, list[Row]] = {name: [] for name in TABLES}
        for record in some:
            labels, boxes = annotations.find(record)
            placed = place_boxes(record, labels, boxes)
            rows["studies"].append(_study_row(record, labels, targets))
            rows["vertebrae"] += _vertebra_rows(record, labels)
            rows["slices"] += _slice_rows(record, labels, placed)
            rows["series"] += _series_rows(record)
            rows["quarantine"] += _quarantine_rows(record, placed)
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


def _folder_names(record: StudyRecord) -> list[str]:
    """Folder of a study whose key was made from its URL, since the folder's name is not a UID."""
    if not record.study.startswith(_STAND_IN):
        return []
    folders = {entry.key.partition("/")[0] for entry in record.inputs if "/" in entry.key}
    return list(folders) if len(folders) == 1 else []


def known_names(store: StudyStore) -> set[str]:
    """Return the names that csv files may use for the studies of a store: keys and folders."""
    keys = store.studies()
    folders = (_folder_names(store.record(key)) for key in keys if key.startswith(_STAND_IN))
    return {str(key) for key in keys} | {name for names in folders for name in names}


def count_unplaced(store: StudyStore) -> int:
    """Return the number of boxes that are on no fractured vertebra, from the tables of a store."""
    kinds: list[str] = store.read_table("quarantine")["kind"].to_pylist()
    return kinds.count(BOX_UNPLACED)


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


def _study_row(record: StudyRecord, labels: Labels, targets: Targets) -> Row:
    row: Row = {
        "study": record.study,
        "patient": record.patient,
        "outcome": record.outcome,
        "kind": record.kind,
        "objects": len(record.inputs),
        "refused": sum(is_refused(entry.outcome) for entry in record.inputs),
        "unused": sum(is_unused(entry.outcome) for entry in record.inputs),
        "source_bytes": sum(entry.size for entry in record.inputs),
        **{name: labels.get(name) for name in targets.columns},
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


def _quarantine_rows(record: StudyRecord, boxes: PlacedBoxes) -> list[Row]:
    rows: list[Row] = [
        {"study": record.study, "key": entry.key, "kind": entry.outcome, "reason": entry.reason}
        for entry in record.inputs
        if is_refused(entry.outcome)
    ]
    rows += [
        {"study": record.study, "key": box.key, "kind": BOX_UNPLACED, "reason": box.reason}
        for box in boxes.unplaced
    ]
    if record.outcome == "quarantined":
        rows.insert(
            0, {"study": record.study, "key": None, "kind": record.kind, "reason": record.reason}
        )
    return rows


def _as_int64(number: int | None) -> int | None:
    """Return a number from a header if it fits the column, else None; it is informative only."""
    return number if number is not None and -(1 << 63) <= number < 1 << 63 else None


def _series_rows(record: StudyRecord) -> list[Row]:
    return [{"study": record.study, **asdict(part)} for part in record.series]


def _vertebra_rows(record: StudyRecord, labels: Labels) -> list[Row]:
    if record.volume is None:
        return []
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


def _slice_rows(record: StudyRecord, labels: Labels, boxes: PlacedBoxes) -> list[Row]:
    volume = record.volume
    if volume is None:
        return []
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
        for crop in containing:
            assert crop.box is not None
            mine = boxes.of.get((crop.level, z), [])
            rows.append(
                common
                | {"level": crop.level, "crop_z": z - crop.box[0]}
                | {"fractured": boxes.label(crop.level, z, labels.get(crop.level))}
                | (_union(mine, crop.box) if mine else {})
            )
    return rows


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
