"""The competition's csv files: read strictly, in the columns that its data page names.

``train.csv`` has a label a level, ``train_bounding_boxes.csv`` where a fracture is seen, and
``sample_submission.csv`` (or ``test.csv``) the rows that a submission must have. Extra columns are
allowed and ignored; a missing column, an empty cell or a value of another kind is one clear line.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow as pa
from pyarrow import csv

from storage_schemas.errors import UsageError
from storage_schemas.vertebrae import LABEL_COLUMNS

STUDY_COLUMN = "StudyInstanceUID"
_BOX_COLUMNS = ("x", "y", "width", "height", "slice_number")


@dataclass(frozen=True)
class FractureBox:
    """One row of ``train_bounding_boxes.csv``.

    Parameters
    ----------
    x, y, width, height : float
        Pixels of the stored image; x and y of its corner of least column and row.
    slice_number : int
        The number in the name of the slice's file.
    """

    x: float
    y: float
    width: float
    height: float
    slice_number: int


def read_labels(url: str) -> dict[str, dict[str, int]]:
    """Read ``train.csv``.

    Returns
    -------
    dict
        For each study its eight labels, 0 or 1, by column name.

    Raises
    ------
    UsageError
        ``csv-invalid`` on a missing column, a repeated study or a label other than 0 and 1;
        ``source-not-found`` where there is no such file.
    """
    types = {name: pa.int8() for name in LABEL_COLUMNS}
    labels: dict[str, dict[str, int]] = {}
    for number, row in enumerate(_read(url, types), start=2):
        study = row.pop(STUDY_COLUMN)
        if study in labels:
            raise UsageError("csv-invalid", f"line {number}: a second row for {study}", key=url)
        if bad := sorted(name for name, value in row.items() if value not in (0, 1)):
            raise UsageError("csv-invalid", f"line {number}: {bad} must be 0 or 1", key=url)
        labels[study] = row
    return labels


def read_boxes(url: str) -> dict[str, list[FractureBox]]:
    """Read ``train_bounding_boxes.csv``; for each study its boxes, in the order of the file.

    Raises
    ------
    UsageError
        ``csv-invalid`` on a missing column, or a box of no area.
    """
    types = {name: pa.float64() for name in _BOX_COLUMNS}
    boxes: dict[str, list[FractureBox]] = {}
    for number, row in enumerate(_read(url, types), start=2):
        if row["width"] <= 0 or row["height"] <= 0 or row["slice_number"] % 1:
            raise UsageError("csv-invalid", f"line {number}: no box in any slice", key=url)
        box = FractureBox(row["x"], row["y"], row["width"], row["height"], int(row["slice_number"]))
        boxes.setdefault(row[STUDY_COLUMN], []).append(box)
    return boxes


def read_row_ids(url: str) -> list[tuple[str, str, str]]:
    """Read the rows that a submission must have, in order: (row_id, study, target).

    Raises
    ------
    UsageError
        ``csv-invalid`` where a row_id is not ``<study>_<one of the eight targets>``.
    """
    rows = []
    for number, row in enumerate(_read(url, {}, first="row_id"), start=2):
        study, _, target = row["row_id"].partition("_")
        if target not in LABEL_COLUMNS:
            raise UsageError(
                "csv-invalid", f"line {number}: row_id {row['row_id']!r} names no target", key=url
            )
        rows.append((row["row_id"], study, target))
    return rows


def check_studies(annotated: Collection[str], known: Collection[str], url: str) -> None:
    """Refuse annotations of studies that are not there.

    Raises
    ------
    UsageError
        ``csv-unknown-study``, with the first such study and their number.
    """
    if unknown := sorted(set(annotated) - set(known)):
        raise UsageError(
            "csv-unknown-study",
            f"{len(unknown)} of {len(annotated)} studies are not there, first {unknown[0]}",
            key=url,
        )


def _read(
    url: str, types: Mapping[str, pa.DataType], first: str = STUDY_COLUMN
) -> list[dict[str, Any]]:
    """The rows of a csv with the column `first` as text and the others as typed, none empty."""
    columns = {first: pa.string(), **types}
    try:
        with fsspec.open(url, "rb") as stream:
            table = csv.read_csv(
                stream,
                read_options=csv.ReadOptions(use_threads=False),
                convert_options=csv.ConvertOptions(
                    column_types=columns, include_columns=list(columns)
                ),
            )
    except FileNotFoundError:
        raise UsageError("source-not-found", "no such file", key=url) from None
    except (KeyError, pa.ArrowInvalid, pa.ArrowKeyError) as error:
        raise UsageError(
            "csv-invalid", f"expected the columns {', '.join(columns)}: {error}", key=url
        ) from None
    for name in columns:
        if table[name].null_count:
            raise UsageError("csv-invalid", f"column {name} has empty cells", key=url)
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows
