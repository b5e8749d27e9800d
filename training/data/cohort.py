"""What the store's tables say about studies, crops and labels: all that planning needs.

No pixel is read here (`training.data.crop_buffer`), and no patient is chosen
(`training.data.splits`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage_schemas.crops import ArrayLayout
from storage_schemas.errors import UsageError
from storage_schemas.records import CROPPED
from storage_schemas.store import StudyStore
from storage_schemas.study_key import StudyKey
from storage_schemas.vertebrae import CERVICAL, LABEL_COLUMNS

Rectangle = tuple[float, float, float, float]


@dataclass(frozen=True)
class VertebraCrop:
    """One crop.

    Parameters
    ----------
    study : StudyKey
    level : str
    shape : tuple of int
        (z, y, x) of the crop.
    spacing_mm : tuple of float
        (z, y, x).
    fractured : int or None
        0, 1 or, where unknown, None.
    seen : tuple of (int or None)
        For each slice of the crop, whether it shows the fracture; None where nobody said.
    boxes : mapping of int to tuple of float
        By slice, where its fracture was drawn: x, y, width and height in pixels of the crop.
    masked : bool
        Whether its mask is stored.
    """

    study: StudyKey
    level: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    fractured: int | None
    seen: tuple[int | None, ...]
    boxes: Mapping[int, Rectangle]
    masked: bool = False

    @property
    def path(self) -> str:
        """Key of its array below ``volumes.zarr``."""
        return f"{self.study}/{self.level}/0"

    @property
    def layout(self) -> ArrayLayout:
        """Of its array; with it the shard is one request."""
        return ArrayLayout(self.shape, "int16")

    @property
    def mask_path(self) -> str:
        """Key of its mask below ``volumes.zarr``."""
        return f"{self.study}/{self.level}/labels/vertebra/0"

    def slices(self, trim_mm: float) -> range:
        """The slices that are inputs: all but `trim_mm` at either end, at least the middle one."""
        trimmed = min(int(trim_mm / self.spacing_mm[0]), (self.shape[0] - 1) // 2)
        return range(trimmed, self.shape[0] - trimmed)

    def targets(self, weak_target: float) -> NDArray[np.float32]:
        """What each slice should be taken for, shape (z,): 0 to 1, NaN where unknown.

        A slice of a whole vertebra is 0; one of a broken vertebra is what the boxes say, and
        `weak_target` where no box was drawn for the study.
        """
        unknown = {None: np.nan, 0: 0.0, 1: weak_target}[self.fractured]
        return np.array([unknown if s is None else s for s in self.seen], np.float32)


@dataclass(frozen=True)
class Study:
    """One committed study.

    Parameters
    ----------
    study : StudyKey
    patient, scanner : str
    labels : tuple of int, or None
        The eight targets in the order of `LABEL_COLUMNS`; None where any is unknown.
    vertebrae : tuple of VertebraCrop
        Those of C1 to C7 that have a crop.
    """

    study: StudyKey
    patient: str
    scanner: str
    labels: tuple[int, ...] | None
    vertebrae: tuple[VertebraCrop, ...]

    @property
    def fractured_levels(self) -> int:
        """Number of broken levels."""
        return sum(self.labels[1:]) if self.labels else 0


def read_cohort(store: StudyStore) -> tuple[Study, ...]:
    """Read the committed studies of a store, by key.

    Raises
    ------
    StoreError
        ``table-missing`` or ``table-invalid``.
    """
    vertebrae = _read_vertebrae(store)
    table = store.read_table("studies").select(
        ["study", "patient", "scanner", "outcome", *LABEL_COLUMNS]
    )
    studies = [
        Study(
            study=StudyKey(row["study"]),
            patient=row["patient"],
            scanner=row["scanner"] or "",
            labels=_labels(row),
            vertebrae=tuple(vertebrae.get(row["study"], ())),
        )
        for row in table.to_pylist()
        if row["outcome"] == "committed"
    ]
    return tuple(sorted(studies, key=lambda study: study.study))


def labelled(cohort: Iterable[Study], url: str) -> tuple[Study, ...]:
    """The studies that can be learnt from and scored: with all labels and at least one crop.

    Raises
    ------
    UsageError
        ``labels-missing`` where there is none.
    """
    chosen = tuple(study for study in cohort if study.labels and study.vertebrae)
    if not chosen:
        raise UsageError("labels-missing", "no study has both labels and crops", key=url)
    return chosen


def label_table(studies: Iterable[Study]) -> NDArray[np.int64]:
    """The labels of labelled studies, shape (studies, 8)."""
    return np.array([study.labels for study in studies], np.int64)


def _labels(row: dict[str, Any]) -> tuple[int, ...] | None:
    values = [row[name] for name in LABEL_COLUMNS]
    return None if None in values else tuple(values)


def _read_vertebrae(store: StudyStore) -> dict[str, list[VertebraCrop]]:
    slices = store.read_table("slices")
    seen, boxes = _read_seen(slices), _read_boxes(slices)
    found: dict[str, list[VertebraCrop]] = {}
    for row in store.read_table("vertebrae").to_pylist():
        if row["outcome"] != CROPPED or row["level"] not in CERVICAL:
            continue
        z, y, x = (row[f"{axis}1"] - row[f"{axis}0"] for axis in "zyx")
        known = seen.get((row["study"], row["level"]), {})
        vertebra = VertebraCrop(
            study=StudyKey(row["study"]),
            level=row["level"],
            shape=(z, y, x),
            spacing_mm=(row["spacing_z_mm"], row["spacing_y_mm"], row["spacing_x_mm"]),
            fractured=row["fractured"],
            seen=tuple(known.get(i) for i in range(z)),
            boxes=boxes.get((row["study"], row["level"]), {}),
            masked=row["masked"],
        )
        found.setdefault(row["study"], []).append(vertebra)
    return {
        study: sorted(rows, key=lambda vertebra: vertebra.level) for study, rows in found.items()
    }


def _read_seen(slices: Any) -> dict[tuple[str, str], dict[int, int]]:
    """For each crop the slices of which it is known whether they show its fracture."""
    columns = slices.select(["study", "level", "crop_z", "fractured"]).drop_null().to_pydict()
    seen: dict[tuple[str, str], dict[int, int]] = {}
    for study, level, z, fractured in zip(*columns.values(), strict=True):
        seen.setdefault((study, level), {})[z] = fractured
    return seen


def _read_boxes(slices: Any) -> dict[tuple[str, str], dict[int, Rectangle]]:
    """For each crop the boxes drawn in it, by slice."""
    names = ["study", "level", "crop_z", "box_x", "box_y", "box_width", "box_height"]
    columns = slices.select(names).drop_null().to_pydict()
    boxes: dict[tuple[str, str], dict[int, Rectangle]] = {}
    for study, level, z, *box in zip(*columns.values(), strict=True):
        boxes.setdefault((study, level), {})[z] = (box[0], box[1], box[2], box[3])
    return boxes
