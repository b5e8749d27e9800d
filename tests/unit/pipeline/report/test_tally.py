"""Counts of a report, the choice of its gallery, and the bounds on its size."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.cli import main
from pipeline.report.gallery import choose_studies
from pipeline.report.histogram import HU_EDGES, sample_hu
from pipeline.report.page import render_report
from pipeline.report.tally import StudyFacts, tally_store
from pipeline.runlog import read_runs
from pipeline.study import StudyRow
from storage_schemas.store import StudyStore
from tests.studies import LEVELS, write_cohort


def facts(study: str, **more: object) -> StudyFacts:
    plain = StudyFacts(study, "committed", "", "", 10, 0, geometry="regular")
    return replace(plain, **more)  # type: ignore[arg-type]  # named by each test


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> StudyStore:
    """A store of two studies without faults."""
    root = tmp_path_factory.mktemp("counts")
    source, masks = write_cohort(root, studies=2)
    assert main(["run", str(source), str(root / "s"), "--serial", "--masks", str(masks)]) == 0
    return StudyStore.open(str(root / "s"))


def page_of(store: StudyStore, gallery: int = 2) -> str:
    (page,) = render_report(store, gallery=gallery, name="r.html")
    return page.html


def test_a_gallery_has_an_example_of_each_trait_and_prefers_rare_ones() -> None:
    studies = [
        *(facts(f"1.{n}", refusals=("truncated",)) for n in range(3)),
        facts("1.3", geometry="tilted", refusals=("truncated",)),
        facts("1.4"),
        facts("1.5", missing_outcomes=("vertebra-not-found",), geometry="tilted"),
    ]
    assert choose_studies(studies, 1) == [(studies[5], ("vertebra-not-found",))]
    assert choose_studies(studies, 2) == [
        (studies[3], ("tilted",)),
        (studies[5], ("vertebra-not-found",)),
    ]
    three = dict(choose_studies(studies, 3))
    assert three == {studies[0]: ("truncated",), **dict(choose_studies(studies, 2))}
    assert [entry.study for entry, _ in choose_studies(studies, 5)] == [
        "1.0", "1.1", "1.2", "1.3", "1.5",
    ]  # fmt: skip
    assert len(choose_studies(studies, 99)) == 6


def test_lists_are_bounded_and_counts_are_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source, _ = write_cohort(tmp_path, studies=1)
    for number in range(5):
        (source / "1.2.1" / f"stray {number}.dcm").write_text("no DICOM")
    assert main(["run", str(source), str(tmp_path / "s"), "--serial"]) == 1
    monkeypatch.setattr("pipeline.report.tally.LISTED", 2)
    monkeypatch.setattr("pipeline.report.page.LISTED", 2)
    lossy = StudyStore.open(str(tmp_path / "s"))
    found = tally_store(lossy).quarantine["not-dicom"]
    assert (found.objects, found.individual, len(found.listed)) == (5, 5, 2)
    assert "and 3 more" in page_of(lossy)


def test_failed_studies_without_a_record_are_counted_from_the_logs(store: StudyStore) -> None:
    assert "failed" not in page_of(store).partition("</section>")[0]
    failed = StudyRow("1.2.9", "failed", "object-unreadable", "403", seconds=1.0)
    lines = [json.dumps(asdict(failed) | {"at_seconds": 2.0}), "no JSON"]
    store.write_log("20990101T000000.000000Z", lines)
    page = page_of(store)
    assert "<strong>3</strong>" in page
    assert "</span>1 failed</li>" in page
    assert "1.2.9" in page
    assert "(1 line unreadable)" in page
    store.objects.remove("logs/20990101T000000.000000Z.jsonl")


def test_a_runs_rates_add_up_to_its_slices(store: StudyStore) -> None:
    rows = [
        StudyRow("1.1", "committed", slices=100, seconds=4.0),
        StudyRow("1.2", "committed", slices=50, seconds=1.0),
    ]
    store.write_log(
        "20990101T000000.000000Z",
        [
            json.dumps(asdict(row) | {"at_seconds": at})
            for row, at in zip(rows, (6.0, 8.0), strict=True)
        ],
    )
    run = read_runs(store)[-1]
    store.objects.remove("logs/20990101T000000.000000Z.jsonl")
    assert run.seconds == 8
    edges, rates = run.rates(8)
    np.testing.assert_allclose(edges, range(9))
    np.testing.assert_allclose(rates, [0, 0, 25, 25, 25, 25, 0, 50])
    assert run.outcomes() == {"committed": 2, "quarantined": 0, "failed": 0}


def test_the_histogram_counts_every_voxel_of_its_sample(store: StudyStore) -> None:
    committed = tally_store(store).committed
    found = sample_hu(store, committed)
    assert found.studies == 2
    assert found.overview.sum() == 2 * 128**3
    crops = [store.read_crop(entry.study, f"C{n}") for n, entry in enumerate(committed, start=1)]
    assert found.vertebrae.sum() == sum(int((crop.mask == 1).sum()) for crop in crops)
    peak = HU_EDGES[found.vertebrae.argmax()]
    assert 480 <= peak <= 520, "the blocks have 500 HU"


def test_studies_beyond_the_size_budget_have_no_scrollable_slices(
    store: StudyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert page_of(store).count('id="slice-') == 2
    one = max(len(line) for line in page_of(store, 1).splitlines() if "data:image" in line)
    monkeypatch.setattr("pipeline.report.page.STRIP_BYTES", one)
    page = page_of(store)
    assert page.count('id="slice-') == 1
    assert "1 without slices to scroll" in page
    assert page.count("Show C1") + page.count("Axial slice of C1") == 2


def test_the_same_store_gives_the_same_page(store: StudyStore) -> None:
    assert page_of(store) == page_of(store)
    assert page_of(store, 1).count("Show C") == LEVELS
