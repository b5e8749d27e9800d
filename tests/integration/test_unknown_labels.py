"""A run on a store in which some labels are unknown: the known ones are trained on and scored."""

import contextlib
import csv
import io
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.cli import main as pipeline_main
from storage_schemas.store import StudyStore
from storage_schemas.targets import COMPETITION
from tests.runs import SETTINGS, lines_of
from training.cli import main
from training.config import RunConfig
from training.data.cohort import Study, read_cohort
from training.data.splits import SIDES
from training.metrics.competition import CLIP

HIDDEN = COMPETITION.columns.index("C3")


@dataclass(frozen=True)
class Site:
    """An evaluated run on a store whose studies lack the label of C3, or all labels."""

    store: Path
    run: Path
    hidden: frozenset[str]
    blank: str
    plan: dict[str, Any]

    def read(self, name: str) -> Any:
        return json.loads((self.run / name).read_text())

    def studies(self) -> dict[str, Study]:
        cohort = read_cohort(StudyStore.open(str(self.store)), COMPETITION)
        return {study.study: study for study in cohort}


@pytest.fixture(scope="module", params=["boost", "sequence"])
def site(
    request: pytest.FixtureRequest,
    phantom: tuple[Path, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Site:
    cohort, given = phantom
    root = tmp_path_factory.mktemp("unknown")
    store, run = root / "store", root / "run"
    shutil.copytree(given, store)
    with (cohort / "train.csv").open() as stream:
        header, *rows = csv.reader(stream)
    blank, *others = rows
    blank[1:] = [""] * 8
    for row in others[::2]:
        row[1 + HIDDEN] = ""
    with (root / "train.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    labels = ["--labels", str(root / "train.csv")]
    labels += ["--boxes", str(cohort / "train_bounding_boxes.csv")]
    assert pipeline_main(["catalog", str(store), *labels]) == 0
    with contextlib.redirect_stderr(io.StringIO()) as told:
        assert main(["boost", str(store), str(run), *SETTINGS, "--recipe", request.param]) == 0
    plan = next(
        event for event in map(json.loads, told.getvalue().splitlines()) if event["stage"] == "plan"
    )
    assert main(["evaluate", str(run), str(store)]) == 0
    return Site(store, run, frozenset(row[0] for row in others[::2]), blank[0], plan)


def test_a_study_takes_part_unless_all_its_labels_are_unknown(site: Site) -> None:
    assert site.plan["studies_without_labels_or_crops"] == 1
    splits = site.read("splits.json")
    patients = [patient for side in SIDES for patient in splits[side]]
    studies = site.studies()
    assert sorted(patients) == sorted({studies[s].patient for s in studies if s != site.blank})
    for side in SIDES:
        here = [studies[key].patient in splits[side] for key in site.hidden]
        assert any(here), f"some study of {side} lacks the label of C3"


def test_rounds_train_on_the_slices_of_labelled_vertebrae(site: Site) -> None:
    studies, config = site.studies(), RunConfig.from_json(site.read("run.json")["config"])
    trained = [key for plan in site.read("rounds.json") for key in plan["studies"]]
    assert site.hidden & set(trained)
    for plan in site.read("rounds.json"):
        assert plan["slices"] == sum(
            len(vertebra.slices(config.inputs.trim_mm))
            for key in plan["studies"]
            for vertebra in studies[key].vertebrae
            if not (key in site.hidden and vertebra.level == "C3")
        )
    for entry in lines_of(site.run):
        assert np.isfinite([entry["train_loss"], *entry["candidates"].values()]).all()


def test_a_study_is_scored_on_its_known_levels(site: Site) -> None:
    exams = site.read("evaluation.json")["exams"]
    scored = [exam for exam in exams if exam["study"] in site.hidden]
    assert scored
    for exam in exams:
        unknown = [place for place, label in enumerate(exam["labels"]) if label is None]
        assert unknown == ([HIDDEN] if exam["study"] in site.hidden else [])
    for exam in scored:
        parts = [
            (sign[label], -np.log(np.clip(p if label else 1 - p, CLIP, 1)))
            for label, p, sign in zip(
                exam["labels"], exam["probabilities"], COMPETITION.weights, strict=True
            )
            if label is not None
        ]
        by_hand = sum(w * loss for w, loss in parts) / sum(w for w, _ in parts)
        assert exam["loss"] == pytest.approx(by_hand)
    losses = [exam["loss"] for exam in exams]
    assert site.read("evaluation.json")["losses"]["model"]["all"] == pytest.approx(np.mean(losses))


def test_no_vertebra_with_an_unknown_label_is_shown_as_a_false_alarm(site: Site) -> None:
    shown = {(case["study"], case["level"]) for case in site.read("examples/examples.json")}
    assert not {case for case in shown if case[0] in site.hidden and case[1] == "C3"}


def test_the_report_counts_known_labels_and_marks_unknown_ones(site: Site) -> None:
    page = site.run.parent / "report.html"
    assert main(["report", str(site.run), str(page)]) == 0
    text = page.read_text()
    exams = site.read("evaluation.json")["exams"]
    known = sum(exam["labels"][HIDDEN] is not None for exam in exams)
    assert known < len(exams)
    assert f'<tr><td>C3</td><td class="number">{known}</td>' in text
    for exam in exams:
        printed = f"({exam['probabilities'][HIDDEN]:.2f})"
        if exam["labels"][HIDDEN] is None:
            assert f'<td class="number">{printed}</td>' in text


def test_an_evaluation_without_a_known_label_of_a_level_is_still_reported(
    site: Site, tmp_path: Path
) -> None:
    store, run = tmp_path / "store", tmp_path / "run"
    shutil.copytree(site.store, store)
    shutil.copytree(site.run, run)
    studies = site.studies()
    header = ["StudyInstanceUID", *COMPETITION.columns]
    rows = [
        [key, *("" if n == HIDDEN or x is None else x for n, x in enumerate(studies[key].labels))]
        for key in studies
    ]
    with (tmp_path / "train.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    assert pipeline_main(["catalog", str(store), "--labels", str(tmp_path / "train.csv")]) == 0
    assert main(["evaluate", str(run), str(store)]) == 0
    found = json.loads((run / "evaluation.json").read_text())
    assert found["losses"]["model"]["C3"] is None
    assert set(found["figures"]["model"]["C3"].values()) == {None}
    assert main(["report", str(run), str(tmp_path / "report.html")]) == 0
