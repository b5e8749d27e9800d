"""Readers of the files that a user gives: label tables, boxes, submission rows and targets.

The csv files have the columns of the competition's data page: ``train.csv`` one column for each
label, ``train_bounding_boxes.csv`` one row for each box around a visible fracture, and
``sample_submission.csv`` (or ``test.csv``) the rows that a submission must have. Further columns
are ignored. A missing column, an empty cell or a value of another type is a UsageError that names
the file and the line.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow as pa
from pyarrow import csv

from storage_schemas.errors import UsageError, reason_of
from storage_schemas.targets import Targets

STUDY_COLUMN = "StudyInstanceUID"
_BOX_COLUMNS = ("x", "y", "width", "height", "slice_number")


@dataclass(frozen=True)
class FractureBox:
    """One row of ``train_bounding_boxes.csv``: a rectangle around a fracture in one slice.

    Parameters
    ----------
    x, y, width, height : float
        Corner of least column and row, and extent, in pixels of the image as it is stored in the
        DICOM file.
    slice_number : int
        The number in the name of the slice's file.
    """

    x: float
    y: float
    width: float
    height: float
    slice_number: int


def load_targets(url: str) -> Targets:
    """Read a JSON file that describes targets.

    Parameters
    ----------
    url : str
        fsspec URL of a file such as ``{"levels": ["L1", "L2"], "patient": "any_fracture",
        "weights": {"any_fracture": [2, 4], "L1": [1, 2], "L2": [1, 2]}}``: for each label the
        weight of its loss where it is negative and where it is positive.

    Raises
    ------
    UsageError
        ``config-invalid`` where the file describes no targets; ``source-not-found`` where it
        cannot be read.
    """
    try:
        with fsspec.open(url, "rb") as stream:
            return Targets.from_text(stream.read())
    except OSError as error:
        raise UsageError("source-not-found", reason_of(error), key=url) from None
    except ValueError as error:
        raise UsageError("config-invalid", f"no targets: {error}", key=url) from None


def read_labels(url: str, targets: Targets) -> dict[str, dict[str, int]]:
    """Read ``train.csv``.

    Parameters
    ----------
    url : str
        fsspec URL of the csv file.
    targets : Targets
        Targets whose `Targets.columns` are read.

    Returns
    -------
    dict
        For each study its labels, 0 or 1, by column name.

    Raises
    ------
    UsageError
        ``csv-invalid`` on a missing column, a repeated study or a label other than 0 and 1;
        ``source-not-found`` where there is no such file.
    """
    types = {name: pa.int8() for name in targets.columns}
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
    """Read ``train_bounding_boxes.csv``.

    Parameters
    ----------
    url : str
        fsspec URL of the csv file.

    Returns
    -------
    dict
        For each study its boxes, in the order of the file.

    Raises
    ------
    UsageError
        ``csv-invalid`` on a missing column, a box without area or a fractional slice number;
        ``source-not-found`` where there is no such file.
    """
    types = {name: pa.float64() for name in _BOX_COLUMNS}
    boxes: dict[str, list[FractureBox]] = {}
    for number, row in enumerate(_read(url, types), start=2):
        sides = row["width"] > 0 and row["height"] > 0
        finite = all(math.isfinite(row[name]) for name in _BOX_COLUMNS)
        if not sides or not finite or row["slice_number"] % 1:
            raise UsageError("csv-invalid", f"line {number}: no box in any slice", key=url)
        box = FractureBox(row["x"], row["y"], row["width"], row["height"], int(row["slice_number"]))
        boxes.setdefault(row[STUDY_COLUMN], []).append(box)
    return boxes


def read_row_ids(url: str, targets: Targets) -> list[tuple[str, str, str]]:
    """Read the rows that a submission must have.

    Parameters
    ----------
    url : str
        fsspec URL of a csv file with the column ``row_id``, ``<study>_<label>`` each.
    targets : Targets
        Targets whose labels the rows may name.

    Returns
    -------
    list of (str, str, str)
        The row_id, the study and the label of each row, in the order of the file.

    Raises
    ------
    UsageError
        ``csv-invalid`` where a row_id does not end in one of the labels; ``source-not-found`` where
        there is no such file.
    """
    rows = []
    for number, row in enumerate(_read(url, {}, first="row_id"), start=2):
        study, _, target = row["row_id"].partition("_")
        if target not in targets.columns:
            raise UsageError(
                "csv-invalid", f"line {number}: row_id {row['row_id']!r} names no target", key=url
            )
        rows.append((row["row_id"], study, target))
    return rows


def check_studies(annotated: Collection[str], known: Collection[str], url: str) -> None:
    """Check that all annotated studies are known.

    Parameters
    ----------
    annotated : collection of str
        Studies of the csv file.
    known : collection of str
        Studies of the source or the store.
    url : str
        The csv file, for the message.

    Raises
    ------
    UsageError
        ``csv-unknown-study``, with the number of unknown studies and the first of them.
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
    """Return the rows of a csv file; the column `first` is text, no cell may be empty."""
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
