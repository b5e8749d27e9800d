"""The pipeline reports each fault of the phantoms as its expected kind."""

import csv
from pathlib import Path

from pipeline.cli import main
from pipeline.phantom import FAULTS, make_cohort
from storage_schemas.store import StudyStore


def test_every_fault_has_its_expected_kind_and_no_object_is_lost(tmp_path: Path) -> None:
    cohort = tmp_path / "cohort"
    make_cohort(cohort, studies=2, size=96, slices=44, faults=True, workers=2)
    store_url = str(tmp_path / "store")
    tables = ["--labels", str(cohort / "train.csv")]
    tables += ["--boxes", str(cohort / "train_bounding_boxes.csv")]
    masks = ["--masks", str(cohort / "segmentations")]
    assert main(["run", str(cohort), store_url, "--workers", "2", *masks, *tables]) == 1

    store = StudyStore.open(store_url)
    studies = {row["study"]: row for row in store.read_table("studies").to_pylist()}
    quarantine = store.read_table("quarantine").to_pylist()
    with (cohort / "faults.csv").open() as stream:
        listed = list(csv.DictReader(stream))
    assert len(listed) == len(FAULTS)
    for row in listed:
        study = row["StudyInstanceUID"]
        kinds = {entry["kind"] for entry in quarantine if entry["study"] == study}
        geometry = set((studies[study]["geometry"] or "").split("+"))
        unused = {entry.outcome for entry in store.record(study).inputs}
        assert row["expected"] in kinds | geometry | unused, row["fault"]
    assert sum(row["outcome"] == "quarantined" for row in studies.values()) == 1

    listed = sum(1 for path in (cohort / "train_images").rglob("*.dcm"))
    assert sum(row["objects"] for row in studies.values()) == listed
    stored = {(r["study"], r["key"]) for r in store.read_table("slices").to_pylist()}
    refused = {(r["study"], r["key"]) for r in quarantine if r["key"]}
    assert len(stored | refused) + sum(row["unused"] for row in studies.values()) == listed
    assert not stored & refused
    assert main(["verify", store_url, "--source", str(cohort)]) == 0
