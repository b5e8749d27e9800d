"""Patients, crops and rounds in memory, for tests of training."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage_schemas.targets import COMPETITION, Targets
from training.data.cohort import Rectangle, Study, VertebraCrop
from training.data.crop_buffer import CropBuffer


def make_vertebra(
    shape: tuple[int, int, int] = (5, 32, 32),
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
    *,
    study: str = "1.2.1",
    level: str = "C1",
    fractured: int | None = 0,
    slice_labels: Sequence[int | None] | None = None,
    boxes: Mapping[int, Rectangle] | None = None,
) -> VertebraCrop:
    return VertebraCrop(
        study=study,
        level=level,
        shape=shape,
        spacing_mm=spacing_mm,
        fractured=fractured,
        slice_labels=tuple(slice_labels) if slice_labels else (None,) * shape[0],
        boxes=boxes or {},
    )


def make_study(
    study: str,
    fractured: Sequence[str] = (),
    *,
    patient: str = "",
    scanner: str = "",
    slices: int = 5,
    targets: Targets = COMPETITION,
    unknown: Sequence[str] = (),
) -> Study:
    """A study with a crop of each level, each with this number of slices.

    The labels of the targets in `unknown` are not known.
    """
    labels = tuple(
        None if level in unknown else int(level in fractured) for level in targets.levels
    )
    vertebrae = tuple(
        make_vertebra((slices, 8, 8), study=study, level=level, fractured=label)
        for level, label in zip(targets.levels, labels, strict=True)
    )
    overall = None if targets.patient in unknown else int(bool(fractured))
    return Study(study, patient or study, scanner, (overall, *labels), vertebrae)


def make_patients(count: int, seed: int = 0, targets: Targets = COMPETITION) -> tuple[Study, ...]:
    """Half of them with one or two fractured levels, two scanners; every fifth has two studies."""
    random = np.random.default_rng(seed)
    studies = []
    for number in range(count):
        many = int(random.integers(1, 3))
        fractured = random.choice(targets.levels, many, replace=False).tolist()
        studies += [
            make_study(
                f"1.{number}.{part}",
                fractured if number % 2 else (),
                patient=f"patient {number}",
                scanner=f"scanner {number % 3 % 2}",
                slices=int(random.integers(4, 9)),
                targets=targets,
            )
            for part in range(2 if number % 5 == 0 else 1)
        ]
    return tuple(studies)


def make_buffer(
    *crops: tuple[VertebraCrop, NDArray[Any]], targets: Targets = COMPETITION
) -> CropBuffer:
    voxels = np.concatenate([hu.astype(np.int16).ravel() for _, hu in crops])
    sizes = [hu.size for _, hu in crops]
    return CropBuffer(
        tuple(vertebra for vertebra, _ in crops),
        voxels,
        np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        targets,
    )
