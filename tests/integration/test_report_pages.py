"""The preprocessing report in a real browser: viewers, links, and complete tables."""

import base64
import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page

from pipeline.cli import main
from storage_schemas.records import STORED, StudyRecord
from storage_schemas.store import StudyStore
from tests.pages import check_contrast, fits, opened, table
from tests.studies import LEVELS, write_cohort

FIRST = "1.2.1"
"""The study of the gallery's first card."""
HOSTILE = "<img src=x onerror=alert(1)>.dcm"
WINDOWS = {"bone": (500, 1800), "soft tissue": (50, 400)}


@dataclass(frozen=True)
class Written:
    """A store of five studies, and its report with all pages.

    1.2.1 has no fault, 1.2.2 a damaged file, 1.2.3 no mask and an object that is not DICOM, 1.2.4
    empty files only, 1.2.5 a missing slice.
    """

    store: StudyStore
    report: Path
    records: list[StudyRecord]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    root = tmp_path_factory.mktemp("report")
    source, masks = write_cohort(root, studies=5)
    (source / "1.2.2" / "3.dcm").write_bytes(b"")
    (masks / "1.2.3.nii").unlink()
    (source / "1.2.3" / HOSTILE).write_text("no DICOM")
    for path in (source / "1.2.4").iterdir():
        path.write_bytes(b"")
    (source / "1.2.5" / "20.dcm").unlink()
    assert main(["run", str(source), str(root / "store"), "--serial", "--masks", str(masks)]) == 1
    report = root / "pages" / "report.html"
    arguments = ["report", str(root / "store"), str(report), "--pages", "--source", str(source)]
    assert main([*arguments, "--gallery", "3"]) == 0
    store = StudyStore.open(str(root / "store"))
    return Written(store, report, list(store.records()))


@pytest.fixture
def page(chromium: Browser, written: Written) -> Iterator[Page]:
    yield from opened(chromium, written.report)


def picture(page: Page) -> np.ndarray:
    """Pixels of the first card's viewer, shape (rows, columns, 3)."""
    url = page.locator("canvas").first.evaluate("canvas => canvas.toDataURL()")
    data = base64.b64decode(url.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def show(page: Page, level: str) -> None:
    """Select a level in the first card and wait until it is shown."""
    card = page.locator(".card.scrolls").first
    card.scroll_into_view_if_needed()
    card.get_by_role("button", name=f"Show {level}").click()
    page.wait_for_function(
        "level => document.querySelector('canvas').dataset.shown?.startsWith(level)", arg=level
    )


def set_slider(page: Page, place: int) -> None:
    page.locator("input[type=range]").first.fill(str(place))


def distance(page: Page, written: Written, level: str, z: int, window: str) -> float:
    """Mean absolute difference between the displayed and the stored slice under a window."""
    shown = picture(page).mean(axis=2)
    centre, width = WINDOWS[window]
    hu = Image.fromarray(written.store.read_crop(FIRST, level).hu[z].astype(np.float32))
    small = np.asarray(hu.resize(shown.shape[::-1], Image.Resampling.BOX))
    wanted = (255 * ((small - centre) / width + 0.5)).clip(0, 255)
    return float(abs(shown - wanted).mean())


def test_the_slider_shows_the_stored_slices_in_order(page: Page, written: Written) -> None:
    show(page, "C4")
    slices = len(written.store.read_crop(FIRST, "C4").hu)
    assert page.locator("input[type=range]").first.get_attribute("max") == str(slices - 1)
    for z in range(slices):
        set_slider(page, z)
        nearest = min(range(slices), key=lambda k: distance(page, written, "C4", k, "bone"))
        assert nearest == z
        # A stored grey level spans up to three displayed ones.
        assert distance(page, written, "C4", z, "bone") < 3
        label = page.locator("output").first.inner_text()
        assert label == f"C4: slice {z + 1} of {slices}, counted from the feet"


def test_the_arrow_keys_move_the_slider(page: Page) -> None:
    show(page, "C4")
    set_slider(page, 2)
    before = picture(page)
    page.locator("input[type=range]").first.press("ArrowRight")
    assert page.locator("canvas").first.get_attribute("data-shown") == "C4 3"
    assert (picture(page) != before).any()


def test_each_window_shows_its_own_range_of_hu(page: Page, written: Written) -> None:
    show(page, "C2")
    set_slider(page, 1)
    for window, other in (("soft tissue", "bone"), ("bone", "soft tissue")):
        page.get_by_label(window).first.check()
        off = distance(page, written, "C2", 1, window)
        assert off < 4
        assert distance(page, written, "C2", 1, other) > 4 * off


def test_the_outline_is_drawn_around_the_mask_alone(page: Page, written: Written) -> None:
    show(page, "C3")
    crop = written.store.read_crop(FIRST, "C3")
    assert crop.mask is not None
    box = page.get_by_label("mask outline").first
    for z, inside in enumerate(crop.mask):
        set_slider(page, z)
        box.check()
        marked = (picture(page) == (255, 160, 20)).all(axis=2)
        assert marked.any() == inside.any()
        if inside.any():
            found = [np.flatnonzero(marked.any(axis)) for axis in (1, 0)]
            wanted = [np.flatnonzero(inside.any(axis)) for axis in (1, 0)]
            for axis in (0, 1):
                scale = inside.shape[axis] / marked.shape[axis]
                assert abs(found[axis][0] * scale - wanted[axis][0]) <= 1.5
                assert abs((found[axis][-1] + 1) * scale - wanted[axis][-1] - 1) <= 1.5
        box.uncheck()
        assert not (picture(page) == (255, 160, 20)).all(axis=2).any()


def test_the_tables_hold_the_records_numbers(page: Page, written: Written) -> None:
    records = written.records
    committed = [record for record in records if record.outcome == "committed"]
    inputs = [entry for record in records for entry in record.inputs]
    refused = [entry for entry in inputs if entry.outcome != STORED]
    tiles = dict(
        zip(
            page.locator(".tile h3").all_inner_texts(),
            [
                tile.all_inner_texts()
                for tile in (t.locator("strong, li") for t in page.locator(".tile").all())
            ],
            strict=True,
        )
    )
    assert tiles["studies"] == ["5", "4 committed", "1 quarantined"]
    stored = len(inputs) - len(refused)
    assert tiles["source objects"] == [
        str(len(inputs)), f"{stored} stored", f"{len(refused)} refused",
    ]  # fmt: skip
    assert tiles["expected vertebrae"] == ["28", "21 cropped", "7 not-localized"]

    kinds = Counter(entry.outcome for entry in refused)
    rows = page.locator("#quarantine ~ .wide").first.locator("tbody tr")
    listed = {
        row.locator("a").inner_text(): row.locator(".number").all_inner_texts()
        for row in rows.all()
    }
    assert {kind: int(objects) for kind, (_, objects, _) in listed.items()} == {
        **kinds,
        "no-dicom": 0,
    }
    assert {kind: int(studies) for kind, (studies, _, _) in listed.items() if studies != "0"} == {
        "no-dicom": 1
    }

    geometry = Counter("+".join(r.volume.geometry.classes) for r in committed if r.volume)
    assert {name: int(n) for name, n in table(page, "Geometry")} == geometry
    readers = table(page, "Transfer syntaxes")
    assert readers == [["ExplicitVRLittleEndian", "native", str(stored)]]
    levels = table(page, "Expected vertebrae")
    assert levels == [[f"C{number}", "3", "1"] for number in range(1, LEVELS + 1)]
    runs = table(page, "All runs")
    assert [run[1:6] for run in runs] == [
        ["5", "4", "1", "0", str(sum(len(r.volume.slices) for r in committed if r.volume))]
    ]
    page.get_by_text("studies with a record").click()
    studies = page.locator("#studies ~ details tbody tr")
    assert [row.locator("td").first.inner_text() for row in studies.all()] == [
        record.study for record in records
    ]


def test_a_kinds_link_opens_the_list_of_its_objects_and_escapes_their_names(
    page: Page, written: Written
) -> None:
    page.locator("a", has_text="not-dicom").click()
    entry = page.locator("#q-not-dicom tbody tr", has_text="1.2.3")
    assert entry.is_visible()
    link = entry.locator("td").nth(1).locator("a")
    assert link.inner_text() == f"1.2.3/{HOSTILE}"
    source = written.report.parents[1] / "source"
    assert unquote(link.get_attribute("href") or "") == f"file://{source}/1.2.3/{HOSTILE}"


def test_the_gallery_has_one_of_each_kind_and_boxes_on_its_cuts(page: Page) -> None:
    shown = {
        card.get_attribute("id"): card.locator(".chip") for card in page.locator(".card").all()
    }
    assert {study: chips.all_inner_texts() for study, chips in shown.items()} == {
        "s1.2.1": [],
        "s1.2.2": ["missing", "not-dicom"],
        "s1.2.3": ["not-localized"],
    }
    boxed = page.locator(".card", has=page.locator(".chip", has_text="missing"))
    assert boxed.locator("svg").count() == 2
    for cut in boxed.locator("svg").all():
        assert cut.locator("text").all_text_contents() == [f"C{n}" for n in range(1, LEVELS + 1)]
        tops = [float(r.get_attribute("y") or "") for r in cut.locator("rect").all()]
        assert tops == sorted(tops), "C1 is on top"


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_does_not_scroll_sideways_at_any_width(
    chromium: Browser, written: Written, width: int
) -> None:
    settings = {"viewport": {"width": width, "height": 844}}
    for page in opened(chromium, written.report, **settings):
        show(page, "C1")
        assert fits(page, width)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_in_light_and_dark_mode(
    chromium: Browser, written: Written, scheme: str
) -> None:
    for page in opened(chromium, written.report, color_scheme=scheme):
        check_contrast(page, scheme)


def test_the_pages_show_every_committed_study(chromium: Browser, written: Written) -> None:
    (pages,) = [path for path in written.report.parent.iterdir() if path.is_dir()]
    (first,) = pages.iterdir()
    for page in opened(chromium, first):
        shown = [card.get_attribute("id") for card in page.locator(".card").all()]
        assert shown == [f"s{r.study}" for r in written.records if r.outcome == "committed"]
        assert page.locator(".card").first.locator(".levels img").count() == LEVELS
        back = page.get_by_role("link", name="Report").get_attribute("href") or ""
        assert (pages / back).resolve() == written.report
    links = written.report.read_text()
    assert f'href="{pages.name}/{first.name}#s1.2.5"' in links


def test_a_damaged_crop_is_reported_on_the_page_and_by_the_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, masks = write_cohort(tmp_path, studies=2)
    assert main(["run", str(source), str(tmp_path / "s"), "--serial", "--masks", str(masks)]) == 0
    (tmp_path / "s/volumes.zarr/1.2.1/C3/0/c/0/0/0").write_bytes(b"")
    (tmp_path / "s/records/1.2.2.json").write_bytes(b"{}")
    capsys.readouterr()
    assert main(["report", str(tmp_path / "s"), str(tmp_path / "r.html")]) == 1
    reported = json.loads(capsys.readouterr().err)["damage"]
    page = (tmp_path / "r.html").read_text()
    for what in ("1.2.1/C3/0: checksum", "records/1.2.2.json: no JSON record"):
        assert any(line.startswith(what) for line in reported)
        assert what in page
