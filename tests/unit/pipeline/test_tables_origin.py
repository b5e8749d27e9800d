"""Tables are rebuilt if, and only if, records, labels or targets have changed."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.tables import Annotations, build_tables, records_sha256, refresh_tables
from storage_schemas.records import RecordHead, StudyRecord
from storage_schemas.store import StudyStore
from storage_schemas.targets import COMPETITION, Targets
from tests.unit.storage_schemas.test_records import example

NONE = Annotations()
LABELS = {"1.2.3": dict.fromkeys(COMPETITION.columns, 1)}


def quarantined(study: str, kind: str = "no-axial-stack") -> StudyRecord:
    bare = replace(example(), volume=None, vertebrae=(), arrays=(), metadata=(), kind=kind)
    return replace(bare, study=study, patient=study, outcome="quarantined")


def refresh(store: StudyStore, annotations: Annotations = NONE) -> None:
    refresh_tables(store, annotations, records_sha256(store.heads()))


@pytest.fixture
def store(tmp_path: Path) -> StudyStore:
    made = StudyStore.create(str(tmp_path))
    made.commit(quarantined("1.2.3"), {})
    build_tables(made, Annotations())
    return made


def test_unchanged_tables_are_not_rebuilt(
    store: StudyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.tables.build_tables", lambda *_: pytest.fail("rebuilt"))
    refresh(store)


def test_new_studies_changed_ones_and_new_labels_rebuild_the_tables(store: StudyStore) -> None:
    store.commit(quarantined("1.2.4"), {})
    refresh(store)
    assert store.read_table("studies")["study"].to_pylist() == ["1.2.3", "1.2.4"]
    store.commit(quarantined("1.2.4", "study-mixed"), {})
    refresh(store)
    assert store.read_table("studies")["kind"].to_pylist() == ["no-axial-stack", "study-mixed"]
    refresh(store, Annotations(labels=LABELS))
    assert store.read_table("studies")["C4"].to_pylist() == [1, None]


def test_other_targets_are_other_columns(store: StudyStore) -> None:
    targets = Targets.of(("L1", "L2"), "any_fracture")
    labels = {"1.2.3": {"any_fracture": 1, "L1": 0, "L2": 1}}
    refresh(store, Annotations(labels=labels, targets=targets))
    assert store.targets() == targets
    (row,) = store.read_table("studies").to_pylist()
    assert {name: row[name] for name in targets.columns} == labels["1.2.3"]
    assert "C1" not in row
    refresh(store)
    assert store.targets() == COMPETITION


def test_a_lost_table_is_rebuilt(store: StudyStore) -> None:
    store.objects.remove("catalog/quarantine.parquet")
    refresh(store)
    assert store.read_table("quarantine").num_rows > 0


def test_the_head_of_a_record_has_the_values_of_the_record() -> None:
    record = example()
    head = RecordHead.from_bytes(record.to_bytes(), "k")
    for name in ("study", "outcome", "kind", "reason", "config_sha256", "input_sha256"):
        assert getattr(head, name) == getattr(record, name)
    assert head.objects == len(record.inputs)


def test_heads_report_a_damaged_record_and_return_the_others(store: StudyStore) -> None:
    store.commit(quarantined("1.2.4"), {})
    data = store.objects.get("records/1.2.3.json")
    store.objects.put("records/1.2.3.json", data.replace(b"no-axial-stack", b"no-axial-stick"))
    damaged, intact = store.heads()
    assert getattr(damaged, "kind", None) == "record-invalid"
    assert isinstance(intact, RecordHead)
    assert intact.study == "1.2.4"
