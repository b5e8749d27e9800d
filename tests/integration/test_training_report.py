"""The training report in a real browser: it opens, stays within its width, and is complete."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page

from storage_schemas.targets import COMPETITION
from tests.pages import check_contrast, fits, opened, table
from training.cli import main
from training.evaluation.evaluate import title
from training.rounds.candidates import candidate_title

Captured = pytest.CaptureFixture[str]


@dataclass(frozen=True)
class Written:
    """A small evaluated run, and its report."""

    run: Path
    report: Path

    def read(self, name: str) -> Any:
        return json.loads((self.run / name).read_text())

    def lines(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.run / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def written(
    whole: Path, phantom: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Written:
    root = tmp_path_factory.mktemp("report")
    found = Written(Path(shutil.copytree(whole, root / "run")), root / "pages" / "report.html")
    assert main(["evaluate", str(found.run), str(phantom[1])]) == 0
    assert main(["report", str(found.run), str(found.report)]) == 0
    return found


@pytest.fixture
def page(chromium: Browser, written: Written) -> Iterator[Page]:
    yield from opened(chromium, written.report)


def fixed(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def test_rounds_and_candidates_are_those_of_the_journal(page: Page, written: Written) -> None:
    history = written.lines("rounds.jsonl")
    plans = written.read("rounds.json")
    rows = table(page, f"{len(history)} of {len(plans)} planned rounds")
    assert [row[0] for row in rows] == [str(entry["round"]) for entry in history]
    for row, entry in zip(rows, history, strict=True):
        decision = (
            f"{candidate_title(entry['best'])} accepted" if entry["accepted"] else "rolled back"
        )
        assert row[1] == decision
        if entry["gain"] is not None:
            assert row[2].startswith(f"gain {entry['gain']:.4f} ")
            assert f"its standard error {entry['gain_error']:.4f}" in row[2]
        assert row[3] == fixed(entry["guard_loss"], 4)
        assert row[5:9] == [
            f"{entry[name]:,}" for name in ("studies", "slices", "replayed_slices", "steps")
        ]
    candidates = page.locator("table", has_text="Guard loss of each candidate")
    titles = candidates.locator("thead th").all_inner_texts()[1:]
    assert titles == ["last weights", "EMA", "interpolated 0.5"]
    names = ["raw", "average", "step 0.5"]
    assert table(page, "Guard loss of each candidate") == [
        [str(entry["round"]), *(fixed(entry["candidates"].get(name), 4) for name in names)]
        for entry in history
    ]
    kept = candidates.locator("td.kept").all_inner_texts()
    assert kept == [fixed(entry["guard_loss"], 4) for entry in history if entry["accepted"]]


def test_scores_of_every_target_are_listed_with_every_constant(
    page: Page, written: Written
) -> None:
    found = written.read("evaluation.json")
    rows = {row[0]: row[1:] for row in table(page, "Loss, with 95")}
    assert list(rows) == [title(name) for name in found["losses"]]
    for name, losses in found["losses"].items():
        assert [cell.split("\n")[0] for cell in rows[title(name)]] == [
            fixed(v) for v in losses.values()
        ]
    low, high = found["intervals"]["model"]["all"]
    assert rows["model"][0].split("\n")[-1] == f"{low:.2f}–{high:.2f}"  # noqa: RUF001
    for name, groups in found["figures"].items():
        for row, values in zip(
            table(page, f"Metrics of the {title(name)}"), groups.values(), strict=True
        ):
            assert row[1] == str(len(found["exams"]) * (7 if row[0] == "levels" else 1))
            assert [cell.split(" ")[0] for cell in row[2:]] == [
                fixed(value and value[0]) for value in values.values()
            ]


def test_sites_and_studies_are_those_of_the_evaluation(page: Page, written: Written) -> None:
    found = written.read("evaluation.json")
    sites = {row[0]: row[1:] for row in table(page, "Loss by scanner")}
    assert set(sites) == set(found["sites"])
    assert next(iter(sites)) == found["worst_site"]
    page.get_by_text(re.compile("^All .* test studies")).click()
    exams = {row[0]: row for row in table(page, "Sorted by loss, largest first")}
    losses = [float(row[1]) for row in exams.values()]
    assert losses == sorted(losses, reverse=True)
    assert len(exams) == len(found["exams"]) == len(written.read("splits.json")["test"])
    for exam in found["exams"]:
        assert exams[exam["study"]][2:] == [fixed(p, 2) for p in exam["probabilities"]]
    printed = page.locator("details td.fractured")
    assert printed.count() == sum(sum(exam["labels"]) for exam in found["exams"])


def test_cases_have_two_pictures_and_the_probability_of_their_vertebra(
    page: Page, written: Written
) -> None:
    listed = written.read("examples/examples.json")
    predicted = {exam["study"]: exam for exam in written.read("evaluation.json")["exams"]}
    assert {entry["kind"] for entry in listed} == {"found", "missed", "false alarm"}
    figures = page.locator(".cases figure").all()
    assert len(figures) == len(listed)
    for figure, entry in zip(figures, listed, strict=True):
        place = COMPETITION.columns.index(entry["level"])
        exam = predicted[entry["study"]]
        assert bool(exam["labels"][place]) == (entry["kind"] != "false alarm")
        printed = figure.locator("figcaption").inner_text()
        assert printed.startswith(f"{entry['level']}, {100 * exam['probabilities'][place]:.0f}")
        assert entry["study"] in printed
        plain, heat = (image.get_attribute("src") for image in figure.locator("img").all())
        assert plain != heat
        widths = figure.locator("img").evaluate_all("all => all.map(i => i.naturalWidth)")
        assert widths == [32, 32]


def test_the_card_and_the_settings_are_complete(page: Page, written: Written) -> None:
    card = page.locator(".prose")
    assert card.locator("h3").inner_text() == "Cervical-spine fracture, slice model"
    headings = card.locator("h4").all_inner_texts()
    source = (written.run / "model" / "README.md").read_text()
    assert headings == [line[3:] for line in source.splitlines() if line.startswith("## ")]
    assert "library_name" not in card.inner_text()
    page.get_by_text("All settings of the run").click()
    config = written.read("run.json")["config"]
    values = [v for part in config.values() if isinstance(part, dict) for v in part.values()]
    settings = page.locator("#settings ~ details tbody tr")
    assert settings.count() == len(values)
    assert len(page.locator("nav a").all()) == page.locator("main > h2").count()


def test_a_curve_of_sensitivity_has_the_reported_area(written: Written) -> None:
    found = written.read("evaluation.json")
    for name, groups in found["curves"].items():
        for group, curves in groups.items():
            false_alarms, sensitivity = np.array(curves["roc"]).T
            area = found["figures"][name][group]["auc"][0]
            assert np.trapezoid(sensitivity, false_alarms) == pytest.approx(area)
            recall, precision = np.array(curves["precision_recall"]).T
            printed = found["figures"][name][group]["average_precision"][0]
            assert -np.sum(np.diff(recall) * precision[:-1]) == pytest.approx(printed)


@pytest.mark.parametrize("width", [390, 1280])
def test_no_width_makes_the_page_scroll_sideways(
    chromium: Browser, written: Written, width: int
) -> None:
    for page in opened(chromium, written.report, viewport={"width": width, "height": 844}):
        assert fits(page, width)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_ink_stands_out_from_the_paper_in_light_and_dark(
    chromium: Browser, written: Written, scheme: str
) -> None:
    for page in opened(chromium, written.report, color_scheme=scheme):
        assert page.locator(".plot svg").count() == 6
        check_contrast(page, scheme)


def test_one_object_names_the_page(written: Written, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "r.html"
    assert main(["report", str(written.run), str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {"stage": "report", "bytes": out.stat().st_size, "report": str(out)}
    assert out.read_bytes() == written.report.read_bytes()


def test_an_evaluation_of_another_version_is_one_clear_line(
    written: Written, tmp_path: Path, capsys: Captured
) -> None:
    run = shutil.copytree(written.run, tmp_path / "run")
    document = written.read("evaluation.json")
    del document["intervals"]
    (run / "evaluation.json").write_text(json.dumps(document))
    assert main(["report", str(run), str(tmp_path / "r.html")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "evaluation.json is of another version: evaluate RUN again [config-invalid]" in line


def test_a_picture_that_is_gone_is_one_clear_line(
    written: Written, tmp_path: Path, capsys: Captured
) -> None:
    run = shutil.copytree(written.run, tmp_path / "run")
    (run / "examples" / "00-heat.png").unlink()
    assert main(["report", str(run), str(tmp_path / "r.html")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "00-heat.png: No such file or directory: evaluate RUN again" in line
