"""Studies, crops and labels of a store, read from its tables.

Voxels are read by `training.data.crop_buffer`; patients are split by `training.data.splits`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage_schemas.arrays import ArrayLayout
from storage_schemas.errors import UsageError
from storage_schemas.records import CROPPED
from storage_schemas.store import StudyStore
from storage_schemas.study_key import StudyKey
from storage_schemas.targets import Targets

Rectangle = tuple[float, float, float, float]


@dataclass(frozen=True)
class VertebraCrop:
    """One crop with its labels.

    Parameters
    ----------
    study : StudyKey
        Study that the vertebra belongs to.
    level : str
        Name of the vertebra, such as ``C1``.
    shape : tuple of int
        Shape (z, y, x) of the crop in voxels.
    spacing_mm : tuple of float
        Voxel spacing (z, y, x) in mm.
    fractured : int or None
        Label of the vertebra: 1 fractured, 0 intact, None unknown.
    slice_labels : tuple of (int or None)
        Label of each slice: 1 where the fracture is visible, 0 where it is not, None unknown.
    boxes : mapping of int to tuple of float
        Fracture bounding box of each annotated slice: x, y, width and height in pixels of the crop.
    masked : bool
        Whether the store holds a mask of the vertebra.
    unlabelled : frozenset of int
        Slices of an intact vertebra whose label is unknown, since a bounding box in them is on no
        fractured vertebra.
    """

    study: StudyKey
    level: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    fractured: int | None
    slice_labels: tuple[int | None, ...]
    boxes: Mapping[int, Rectangle]
    masked: bool = False
    unlabelled: frozenset[int] = frozenset()

    @property
    def path(self) -> str:
        """Key of the crop's array below ``volumes.zarr``."""
        return f"{self.study}/{self.level}/0"

    @property
    def layout(self) -> ArrayLayout:
        """Layout of the crop's array; with it, one request reads the shard."""
        return ArrayLayout(self.shape, "int16")

    @property
    def mask_path(self) -> str:
        """Key of the mask's array below ``volumes.zarr``."""
        return f"{self.study}/{self.level}/labels/vertebra/0"

    def slices(self, trim_mm: float) -> range:
        """Return the slices that are model inputs.

        Parameters
        ----------
        trim_mm : float
            Length in mm that is dropped at the lower and the upper end of the crop. The middle
            slice is always kept.
        """
        trimmed = min(int(trim_mm / self.spacing_mm[0]), (self.shape[0] - 1) // 2)
        return range(trimmed, self.shape[0] - trimmed)

    def targets(self, weak_target: float) -> NDArray[np.float32]:
        """Return the training target of each slice.

        Parameters
        ----------
        weak_target : float
            Soft target for slices of a fractured vertebra whose label is unknown.

        Returns
        -------
        ndarray, shape (z,), float32
            Targets from 0 to 1, NaN where unknown. Slices of an intact vertebra are 0, but NaN
            where they are `unlabelled`.
        """
        unknown = {None: np.nan, 0: 0.0, 1: weak_target}[self.fractured]
        targets = np.array([unknown if s is None else s for s in self.slice_labels], np.float32)
        targets[list(self.unlabelled)] = np.nan
        return targets


@dataclass(frozen=True)
class Study:
    """One committed study.

    Parameters
    ----------
    study : StudyKey
        Key of the study in the store.
    patient : str
        Patient key; studies of one patient share it.
    scanner : str
        Scanner name, empty where unknown.
    labels : tuple of (int or None)
        Labels in the order of `Targets.columns`: 1 fractured, 0 intact, None unknown.
    vertebrae : tuple of VertebraCrop
        Crops of the study's vertebrae, in the order of `Targets.levels`.
    """

    study: StudyKey
    patient: str
    scanner: str
    labels: tuple[int | None, ...]
    vertebrae: tuple[VertebraCrop, ...]

    @property
    def fractured_levels(self) -> int:
        """Number of levels that are known to be fractured."""
        return self.labels[1:].count(1)

    @property
    def has_labels(self) -> bool:
        """Whether at least one label is known."""
        return any(label is not None for label in self.labels)


def read_cohort(store: StudyStore, targets: Targets) -> tuple[Study, ...]:
    """Read the committed studies of a store, sorted by key.

    Parameters
    ----------
    store : StudyStore
        Store whose tables are read.
    targets : Targets
        Levels and labels to read. A label that the store's tables lack is unknown.

    Raises
    ------
    StoreError
        ``table-missing`` or ``table-invalid``.
    """
    vertebrae = _read_vertebrae(store, targets)
    table = store.read_table("studies")
    labels = [name for name in targets.columns if name in table.column_names]
    table = table.select(["study", "patient", "scanner", "outcome", *labels])
    studies = [
        Study(
            study=StudyKey(row["study"]),
            patient=row["patient"],
            scanner=row["scanner"] or "",
            labels=tuple(row.get(name) for name in targets.columns),
            vertebrae=tuple(vertebrae.get(row["study"], ())),
        )
        for row in table.to_pylist()
        if row["outcome"] == "committed"
    ]
    return tuple(sorted(studies, key=lambda study: study.study))


def labelled(cohort: Iterable[Study], url: str) -> tuple[Study, ...]:
    """Return the studies that have at least one known label and at least one crop.

    Parameters
    ----------
    cohort : iterable of Study
        Studies of a store.
    url : str
        URL of the store, for the error message.

    Raises
    ------
    UsageError
        ``labels-missing`` if no study qualifies.
    """
    chosen = tuple(study for study in cohort if study.has_labels and study.vertebrae)
    if not chosen:
        raise UsageError("labels-missing", "no study has both labels and crops", key=url)
    return chosen


def label_table(studies: Iterable[Study]) -> NDArray[np.float64]:
    """Stack the labels of studies: 0 or 1, NaN where unknown.

    Returns
    -------
    ndarray, shape (studies, targets), float64
    """
    return np.array([study.labels for study in studies], np.float64)


def _read_vertebrae(store: StudyStore, targets: Targets) -> dict[str, list[VertebraCrop]]:
    slices = store.read_table("slices")
    slice_labels, boxes = _read_slice_labels(slices), _read_boxes(slices)
    found: dict[str, list[VertebraCrop]] = {}
    for row in store.read_table("vertebrae").to_pylist():
        if row["outcome"] != CROPPED or row["level"] not in targets.levels:
            continue
        z, y, x = (row[f"{axis}1"] - row[f"{axis}0"] for axis in "zyx")
        known = slice_labels.get((row["study"], row["level"]), {})
        vertebra = VertebraCrop(
            study=StudyKey(row["study"]),
            level=row["level"],
            shape=(z, y, x),
            spacing_mm=(row["spacing_z_mm"], row["spacing_y_mm"], row["spacing_x_mm"]),
            fractured=row["fractured"],
            slice_labels=tuple(known.get(i) for i in range(z)),
            boxes=boxes.get((row["study"], row["level"]), {}),
            masked=row["masked"],
            unlabelled=frozenset(set(range(z)) - known.keys() if row["fractured"] == 0 else ()),
        )
        found.setdefault(row["study"], []).append(vertebra)
    return {
        study: sorted(rows, key=lambda vertebra: targets.levels.index(vertebra.level))
        for study, rows in found.items()
    }


def _read_slice_labels(slices: Any) -> dict[tuple[str, str], dict[int, int]]:
    """Read the known slice labels of each crop: label by slice."""
    columns = slices.select(["study", "level", "crop_z", "fractured"]).drop_null().to_pydict()
    slice_labels: dict[tuple[str, str], dict[int, int]] = {}
    for study, level, z, fractured in zip(*columns.values(), strict=True):
        slice_labels.setdefault((study, level), {})[z] = fractured
    return slice_labels


def _read_boxes(slices: Any) -> dict[tuple[str, str], dict[int, Rectangle]]:
    """Read the bounding boxes of each crop, by slice."""
    names = ["study", "level", "crop_z", "box_x", "box_y", "box_width", "box_height"]
    columns = slices.select(names).drop_null().to_pydict()
    boxes: dict[tuple[str, str], dict[int, Rectangle]] = {}
    for study, level, z, *box in zip(*columns.values(), strict=True):
        boxes.setdefault((study, level), {})[z] = (box[0], box[1], box[2], box[3])
    return boxes
