"""Readers of the files that a user gives: label tables, boxes, submission rows and targets.

The csv files have the columns of the competition's data page: ``train.csv`` one column for each
label, ``train_bounding_boxes.csv`` one row for each box around a visible fracture, and
``sample_submission.csv`` (or ``test.csv``) the rows that a submission must have. Further columns
are ignored. A missing column or a value of another type is a UsageError that names the file, the
line and the column. How cells are written is `storage_schemas.parsing.csv_rows`.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import fsspec

from storage_schemas.errors import UsageError, reason_of
from storage_schemas.parsing.csv_rows import Row, read_rows
from storage_schemas.targets import COMPETITION, Targets

STUDY_COLUMN = "StudyInstanceUID"
_BOX_COLUMNS = ("x", "y", "width", "height", "slice_number")

Labels = dict[str, int | None]
"""A study's labels by column name: 0, 1, or None where unknown."""
Overall = Literal["refuse", "mend"]


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


def read_labels(
    url: str, targets: Targets = COMPETITION, overall: Overall = "refuse"
) -> dict[str, Labels]:
    """Read ``train.csv``.

    Parameters
    ----------
    url : str
        fsspec URL of the csv file.
    targets : Targets
        Targets whose `Targets.columns` are read.
    overall : {"refuse", "mend"}
        Handling of a patient's label that contradicts the levels. ``mend`` assumes the fracture:
        the patient's label becomes 1 if a level is 1, and the levels become unknown if the
        patient's label is 1 and all of them are 0.

    Returns
    -------
    dict
        For each study its labels by column name: 0, 1, or None where the cell has no value. A
        study may have several rows that do not contradict each other.

    Raises
    ------
    UsageError
        ``csv-invalid`` on a missing column, on a label other than 0, 1, 0.0, 1.0, True, False or
        nothing, and on rows of one study that contradict each other; ``labels-contradictory`` where
        the patient's label contradicts the levels'; ``source-not-found`` where there is no such
        file.
    """
    labels: dict[str, Labels] = {}
    lines: dict[str, int] = {}
    for row in read_rows(url, (STUDY_COLUMN, *targets.columns)):
        study = _text(row, STUDY_COLUMN)
        found = {name: _label(row, name) for name in targets.columns}
        for name, value in labels.get(study, {}).items():
            if found[name] is None:
                found[name] = value
            elif value not in (None, found[name]):
                raise row.error(name, f"is {value} in line {lines[study]}, of the same study")
        labels[study], lines[study] = found, row.line
    wrong = [study for study, found in labels.items() if contradicts(found, targets)]
    if wrong and overall == "refuse":
        first = wrong[0]
        raise UsageError(
            "labels-contradictory",
            f"line {lines[first]}: {targets.patient} of {first} is {labels[first][targets.patient]}"
            f", fractured levels: {', '.join(_fractured(labels[first], targets)) or 'none'}"
            f" ({len(wrong)} such studies)",
            key=url,
        )
    return labels | {study: _mend(labels[study], targets) for study in wrong}


def contradicts(labels: Mapping[str, int | None], targets: Targets = COMPETITION) -> bool:
    """Return whether the patient's label and the levels' labels cannot all be right.

    The patient's label is 1 where any level's is (the competition's data page); an unknown label
    contradicts nothing.
    """
    patient, fractured = labels[targets.patient], _fractured(labels, targets)
    intact = all(labels[level] == 0 for level in targets.levels)
    return (patient == 0 and bool(fractured)) or (patient == 1 and intact)


def _fractured(labels: Mapping[str, int | None], targets: Targets) -> list[str]:
    return [level for level in targets.levels if labels[level] == 1]


def _mend(labels: Labels, targets: Targets) -> Labels:
    if _fractured(labels, targets):
        return labels | {targets.patient: 1}
    return labels | dict.fromkeys(targets.levels)


def _text(row: Row, column: str) -> str:
    if not row.cells[column]:
        raise row.error(column, "is empty")
    return row.cells[column]


def _label(row: Row, column: str) -> int | None:
    """A label as 0 or 1: pandas writes floats and booleans, too; None where it is unknown."""
    words = {"true": 1, "false": 0}
    if (text := row.cells[column].lower()) in words:
        return words[text]
    number = row.number(column)
    if number not in (None, 0, 1):
        raise row.error(column, "is no label, which is 0 or 1")
    return None if number is None else int(number)


def read_boxes(url: str) -> dict[str, list[FractureBox]]:
    """Read ``train_bounding_boxes.csv``.

    Parameters
    ----------
    url : str
        fsspec URL of the csv file.

    Returns
    -------
    dict
        For each study its boxes, in the order of the file, repeated ones once.

    Raises
    ------
    UsageError
        ``csv-invalid`` on a missing column, an empty cell, a box without area or a fractional slice
        number; ``source-not-found`` where there is no such file.
    """
    boxes: dict[str, list[FractureBox]] = {}
    for row in read_rows(url, (STUDY_COLUMN, *_BOX_COLUMNS)):
        x, y, width, height, number = (_finite(row, name) for name in _BOX_COLUMNS)
        for name, side in ("width", width), ("height", height):
            if side <= 0:
                raise row.error(name, "is no side of a box, which is above 0 pixels")
        if number % 1:
            raise row.error("slice_number", "is no whole number")
        box = FractureBox(x, y, width, height, int(number))
        found = boxes.setdefault(_text(row, STUDY_COLUMN), [])
        if box not in found:
            found.append(box)
    return boxes


def _finite(row: Row, column: str) -> float:
    number = row.number(column)
    if number is None or not math.isfinite(number):
        raise row.error(column, "is no finite number")
    return number


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
    for row in read_rows(url, ("row_id",)):
        row_id = row.cells["row_id"]
        # From the right where a study's name holds "_" itself, which a label may as well.
        names = [name for name in targets.columns if row_id.endswith(f"_{name}")]
        if not names:
            raise row.error("row_id", "names no target")
        target = max(names, key=len)
        rows.append((row_id, row_id.removesuffix(f"_{target}"), target))
    return rows


def check_studies(annotated: Collection[str], known: Collection[str], url: str) -> int:
    """Return how many of the annotated studies are unknown.

    A table of a whole set over a part of its studies is normal; a table of which no study is known
    belongs to another set.

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
        ``csv-unknown-study`` where all annotated studies are unknown.
    """
    unknown = sorted(set(annotated) - set(known))
    if unknown and len(unknown) == len(set(annotated)):
        raise UsageError(
            "csv-unknown-study",
            f"none of its {len(unknown)} studies is there, first {unknown[0]}; "
            f"of {len(known)} that are there the first is {min(known, default='none')}",
            key=url,
        )
    return len(unknown)
