"""Studies, crops and labels as they are read from the tables of a store."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage_schemas.catalog import make_table
from storage_schemas.errors import StudyError, UsageError
from storage_schemas.store import StudyStore
from storage_schemas.targets import COMPETITION, Targets
from training.data.cohort import label_table, labelled, read_cohort

THORACIC = Targets.of(("T2", "T10", "T11"), "any_fracture", level_weights=(1, 5))


def make_store(
    folder: Path, targets: Targets, rows: dict[str, dict[str, int]], key: str = "1.2.1"
) -> StudyStore:
    """A store of tables alone: one study for each row of labels, with a crop of each level."""
    studies: list[dict[str, Any]] = []
    vertebrae: list[dict[str, Any]] = []
    for number, (patient, labels) in enumerate(rows.items()):
        study = {"study": key if not number else f"1.2.{number + 1}", "patient": patient}
        studies.append(
            study
            | {"outcome": "committed", "kind": "", "objects": 1, "refused": 0, "source_bytes": 1}
            | {"scanner": "s", **labels}
        )
        vertebrae += [
            study
            | {"scanner": "s", "level": level, "outcome": "cropped", "reason": "", "masked": False}
            | {"z0": 0, "z1": 3, "y0": 0, "y1": 4, "x0": 0, "x1": 5}
            | {"spacing_z_mm": 1.0, "spacing_y_mm": 1.0, "spacing_x_mm": 1.0}
            | {"fractured": labels.get(level)}
            for level in ("T11", "C1", "T10", "T2")
        ]
    store = StudyStore.create(str(folder))
    for name, table in (("studies", studies), ("vertebrae", vertebrae), ("slices", [])):
        store.write_table(name, make_table(name, table, targets))
    return store


LABELS = {
    "a": {"any_fracture": 1, "T2": 0, "T10": 1, "T11": 0},
    "b": {"any_fracture": 0, "T2": 0, "T10": 0, "T11": 0},
}


def test_labels_and_crops_are_those_of_the_stores_targets(tmp_path: Path) -> None:
    store = make_store(tmp_path, THORACIC, LABELS)
    cohort = labelled(read_cohort(store, store.targets()), store.url)
    np.testing.assert_array_equal(label_table(cohort), [[1, 0, 1, 0], [0, 0, 0, 0]])
    assert [study.fractured_levels for study in cohort] == [1, 0]


def test_crops_lie_in_the_order_of_the_levels_and_not_of_their_names(tmp_path: Path) -> None:
    store = make_store(tmp_path, THORACIC, LABELS)
    for study in read_cohort(store, THORACIC):
        assert [vertebra.level for vertebra in study.vertebrae] == ["T2", "T10", "T11"]


def test_a_store_without_a_runs_labels_still_has_its_crops(tmp_path: Path) -> None:
    store = make_store(tmp_path, COMPETITION, {"a": {}})
    (study,) = read_cohort(store, THORACIC)
    assert set(study.labels) == {None}
    assert len(study.vertebrae) == 3
    with pytest.raises(UsageError, match="labels-missing"):
        labelled([study], store.url)


def test_a_study_takes_part_with_the_labels_that_are_known(tmp_path: Path) -> None:
    rows: dict[str, dict[str, int]] = {
        "a": {"any_fracture": 1, "T2": 0, "T11": 1},
        "b": {"T10": 0},
        "c": {},
    }
    store = make_store(tmp_path, THORACIC, rows)
    everyone = read_cohort(store, THORACIC)
    assert [study.has_labels for study in everyone] == [True, True, False]
    cohort = labelled(everyone, store.url)
    assert [study.patient for study in cohort] == ["a", "b"], "a study without labels is left out"
    unknown = np.nan
    found = label_table(cohort)
    np.testing.assert_array_equal(
        found, [[1, 0, unknown, 1], [unknown, unknown, 0, unknown]], "never 0"
    )
    assert [study.fractured_levels for study in cohort] == [1, 0]
    by_level = {vertebra.level: vertebra for vertebra in cohort[0].vertebrae}
    assert np.isnan(by_level["T10"].targets(0.5)).all()
    assert set(by_level["T11"].targets(0.5).tolist()) == {0.5}


def test_a_table_whose_study_is_no_key_is_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path, THORACIC, LABELS, key="../1")
    with pytest.raises(StudyError, match="study-key-invalid"):
        read_cohort(store, THORACIC)
