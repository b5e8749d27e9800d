"""A store and runs of other targets than the competition's, from DICOM to a submission.

The phantom's neck stands in for a lumbar spine: its masks are renumbered, so that C1 to C5 are
taken for L1 to L5.
"""

import csv
import json
import re
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pipeline.cli import main as pipeline_main
from pipeline.phantom import make_cohort
from storage_schemas.store import StudyStore
from storage_schemas.targets import Targets
from storage_schemas.vertebrae import CERVICAL, LUMBAR
from tests.runs import SETTINGS, lines_of
from training.cli import main
from training.models.kinds import load_any
from training.runs import RunFolder

TARGETS = Targets.of(LUMBAR, "any_fracture", level_weights=(1, 3), patient_weights=(4, 9))
LUMBAR_OF = dict(zip(CERVICAL, LUMBAR, strict=False))
Captured = pytest.CaptureFixture[str]


@dataclass(frozen=True)
class Site:
    """A cohort and its files, its store, a run of slice models and one of sequence models."""

    cohort: Path
    store: Path
    slices: Path
    sequences: Path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    root = tmp_path_factory.mktemp("lumbar")
    found = Site(*(root / name for name in ("cohort", "store", "slices", "sequences")))
    make_cohort(found.cohort, studies=24, seed=4, size=40, slices=20, workers=1)
    renumber_masks(found.cohort / "segmentations")
    rewrite_tables(found.cohort)
    run = ["run", str(found.cohort), str(found.store), "--serial"]
    run += ["--masks", str(found.cohort / "segmentations"), "--mask-labels", "verse"]
    run += ["--targets", str(found.cohort / "targets.json")]
    run += ["--labels", str(found.cohort / "train.csv")]
    assert pipeline_main(run) == 0
    for path, recipe in ((found.slices, "boost"), (found.sequences, "sequence")):
        more = [*SETTINGS, "--rounds", "2", "--recipe", recipe]
        assert main(["boost", str(found.store), str(path), *more]) == 0
    return found


def renumber_masks(folder: Path) -> None:
    """Give C1 to C5 the numbers of L1 to L5 in VerSe, and the others none."""
    numbers = np.zeros(256, np.uint8)
    numbers[1:6] = np.arange(20, 25)
    for path in folder.glob("*.nii*"):
        mask = nib.load(path)
        data = numbers[np.asarray(mask.dataobj).astype(np.uint8)]
        nib.Nifti1Image(data, mask.affine).to_filename(path)


def rewrite_tables(cohort: Path) -> None:
    (cohort / "targets.json").write_text(json.dumps(TARGETS.to_json()))
    with (cohort / "train.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    with (cohort / "train.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["StudyInstanceUID", *TARGETS.columns])
        for row in rows:
            levels = [int(row[level]) for level in LUMBAR_OF]
            writer.writerow([row["StudyInstanceUID"], max(levels), *levels])
    studies = [row["StudyInstanceUID"] for row in rows]
    lines = [f"{study}_{target},0.5\n" for study in studies for target in TARGETS.columns]
    (cohort / "sample_submission.csv").write_text("row_id,fractured\n" + "".join(lines))


def test_the_store_holds_the_targets_its_labels_and_its_levels(site: Site) -> None:
    store = StudyStore.open(str(site.store))
    assert store.targets() == TARGETS
    crops = store.read_table("vertebrae").to_pylist()
    assert {row["level"] for row in crops if row["outcome"] == "cropped"} == set(LUMBAR)
    with (site.cohort / "train.csv").open() as stream:
        expected = {row["StudyInstanceUID"]: row for row in csv.DictReader(stream)}
    for row in store.read_table("studies").to_pylist():
        for column in TARGETS.columns:
            assert row[column] == int(expected[row["study"]][column])


def test_tables_are_rebuilt_with_the_stores_targets_where_none_are_given(site: Site) -> None:
    labels = ["--labels", str(site.cohort / "train.csv")]
    assert pipeline_main(["catalog", str(site.store), *labels]) == 0
    assert StudyStore.open(str(site.store)).targets() == TARGETS


def test_a_run_carries_the_targets_and_goes_on_under_them(site: Site) -> None:
    for path in (site.slices, site.sequences):
        assert RunFolder(path).targets() == TARGETS
    before = (site.slices / "rounds.jsonl").read_bytes()
    more = [*SETTINGS, "--rounds", "2", "--recipe", "boost"]
    assert main(["boost", str(site.store), str(site.slices), *more]) == 0
    assert (site.slices / "rounds.jsonl").read_bytes() == before


def test_a_sequence_model_reads_as_many_vertebrae_as_there_are_levels(site: Site) -> None:
    model, _ = load_any(site.sequences / "model")
    assert tuple(model.config.levels) == LUMBAR
    assert len(lines_of(site.sequences)) == 2


@pytest.mark.parametrize("name", ["slices", "sequences"])
def test_a_run_is_evaluated_reported_and_predicts_under_its_targets(
    site: Site, name: str, tmp_path: Path
) -> None:
    run = getattr(site, name)
    assert main(["evaluate", str(run), str(site.store)]) == 0
    losses = json.loads((run / "evaluation.json").read_text())["losses"]
    assert list(losses["model"]) == ["all", *TARGETS.columns]
    assert main(["report", str(run), str(tmp_path / "run.html")]) == 0
    page = (tmp_path / "run.html").read_text()
    assert "L5" in page
    assert not re.search(r"\bC[1-7]\b", re.sub(r"base64,[^\"]*", "", page))
    sample = site.cohort / "sample_submission.csv"
    out = tmp_path / "submission.csv"
    more = ["--submission", str(sample), "--explain", str(tmp_path / "pages")]
    assert main(["predict", str(run), str(site.store), str(out), *more]) == 0
    with out.open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["row_id"] for row in rows] == [
        line.partition(",")[0] for line in sample.read_text().splitlines()[1:]
    ]
    assert all(0 <= float(row["fractured"]) <= 1 for row in rows)
    header = (tmp_path / "submission.table.csv").read_text().splitlines()[0]
    assert header == ",".join(["StudyInstanceUID", *TARGETS.columns, "levels_by_prior"])
    (page_of_study, *_) = sorted((tmp_path / "pages").glob("*.json"))
    assert list(json.loads(page_of_study.read_text())["probabilities"]) == list(TARGETS.columns)


def test_runs_of_other_targets_make_no_ensemble(site: Site, tmp_path: Path) -> None:
    settings = json.loads((site.sequences / "run.json").read_text())
    other = tmp_path / "other"
    other.mkdir()
    for path in ("splits.json", "rounds.jsonl", "rounds.json"):
        (other / path).write_bytes((site.sequences / path).read_bytes())
    del settings["targets"]
    (other / "run.json").write_text(json.dumps(settings))
    runs = [str(site.slices), str(other)]
    assert main(["blend", str(tmp_path / "b"), *runs, "--store", str(site.store)]) == 2


def test_training_a_model_of_other_levels_is_refused_by_name(
    site: Site, tmp_path: Path, capsys: Captured
) -> None:
    settings = json.loads((site.sequences / "model" / "config.json").read_text())
    assert settings["levels"] == list(LUMBAR)
    store = StudyStore.open(str(site.store))
    tables = {name: store.read_table(name) for name in ("studies", "vertebrae", "slices")}
    other = StudyStore.create(str(tmp_path / "store"))
    short = Targets.of(LUMBAR[:4], "any_fracture").to_json()
    for name, table in tables.items():
        metadata = {**table.schema.metadata, b"targets": json.dumps(short).encode()}
        kept = [column for column in table.column_names if column != "L5" or name != "studies"]
        other.write_table(name, table.select(kept).replace_schema_metadata(metadata))
    more = [*SETTINGS, "--recipe", "sequence", "--model", str(site.sequences / "model")]
    assert main(["boost", other.url, str(tmp_path / "run"), *more]) == 2
    assert "model-invalid" in capsys.readouterr().err
