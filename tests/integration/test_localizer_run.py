"""`cspine-pipeline run --localizer`: crops of studies without a mask, and runs in two passes."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pipeline.cli import main
from pipeline.vertebrae import onnx_network as network
from storage_schemas.geometry import StackGeometry
from storage_schemas.localizer_card import CLASSES, LOCALIZED_LEVELS
from storage_schemas.objects import ObjectFolder
from storage_schemas.records import StudyRecord
from storage_schemas.store import StudyStore
from tests.networks import SIZE, block_network, constant_network, write_network
from tests.s3 import serve_s3
from tests.studies import LEVELS, LIFE_SIZE, SLICES, labels, write_cohort, write_mask


@pytest.fixture(autouse=True)
def _nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "_opened", {})


def mixed(root: Path, studies: int = 3) -> tuple[Path, Path, str]:
    """Studies of which only the first has a mask, and a localizer for the others."""
    source, masks = write_cohort(root, studies, LIFE_SIZE)
    for number in range(2, studies + 1):
        (masks / f"1.2.{number}.nii").unlink()
    return source, masks, write_network(root / "m.onnx", block_network())


def run(capsys: pytest.CaptureFixture[str], *arguments: object, serial: bool = True) -> dict:
    how = ["--serial"] if serial else ["--workers", "1"]
    code = main(["run", *map(str, arguments), "--json", *how])
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["committed"] + summary["quarantined"] + summary["failed"] == summary["listed"]
    return {**summary, "code": code}


def records_of(url: object) -> dict[str, StudyRecord]:
    return {record.study: record for record in StudyStore.open(str(url)).records()}


def bounds_mm(geometry: StackGeometry, box: tuple[int, ...]) -> np.ndarray:
    corners = geometry.to_lps([box[::2], np.subtract(box[1::2], 1)])
    return np.sort(corners, axis=0)


def test_a_localizer_gives_the_crops_that_a_mask_gives(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, masks, model = mixed(tmp_path, studies=1)
    assert run(capsys, source, tmp_path / "a", "--masks", masks)["crops"] == LEVELS
    summary = run(capsys, source, tmp_path / "b", "--localizer", model)
    assert (summary["code"], summary["crops"]) == (0, LEVELS)
    by_mask, by_model = records_of(tmp_path / "a")["1.2.1"], records_of(tmp_path / "b")["1.2.1"]
    assert by_model.localizer.startswith("model:")
    assert len(by_model.localizer) == len("model:") + 64
    assert by_mask.volume is not None
    voxel_of_the_sight = np.array([40 * 1.6, 48 * 1.2, 32 * 4.0]) / SIZE
    store = StudyStore.open(str(tmp_path / "b"))
    for number, (theirs, ours) in enumerate(
        zip(by_mask.vertebrae, by_model.vertebrae, strict=True), start=1
    ):
        geometry = by_mask.volume.geometry
        off = bounds_mm(geometry, theirs.box or ()) - bounds_mm(geometry, ours.box or ())
        assert (np.abs(off) <= voxel_of_the_sight[[1, 0, 2]] + 1e-6).all()
        assert ours.score is not None
        assert 0.9 < ours.score <= 1
        crop = store.read_crop("1.2.1", ours.level)
        z0, z1, y0, y1, x0, x1 = ours.box or ()
        assert crop.mask is not None
        true = labels()[z0:z1, y0:y1, x0:x1] == number
        both = 2 * (crop.mask.astype(bool) & true).sum() / (crop.mask.sum() + true.sum())
        assert both > 0.85
        assert crop.attributes["localizer"] == by_model.localizer
    rows = store.read_table("studies").to_pylist()
    assert [row["overview_levels"] for row in rows] == [False]
    vertebrae = store.read_table("vertebrae").to_pylist()
    assert all(row["masked"] and row["score"] > 0.9 for row in vertebrae)
    assert main(["verify", str(tmp_path / "b")]) == 0
    assert main(["report", str(tmp_path / "b"), str(tmp_path / "page.html")]) == 0


def test_serial_and_cluster_give_the_same_crops(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, _, model = mixed(tmp_path, studies=2)
    run(capsys, source, tmp_path / "a", "--localizer", model)
    run(capsys, source, tmp_path / "b", "--localizer", model, serial=False)
    assert records_of(tmp_path / "a") == records_of(tmp_path / "b")


def test_a_second_pass_with_a_localizer_processes_only_studies_without_a_mask(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, masks, model = mixed(tmp_path)
    store = tmp_path / "s"
    first = run(capsys, source, store, "--masks", masks)
    assert (first["committed"], first["crops"]) == (3, LEVELS)
    assert StudyStore.open(str(store)).read_overview("1.2.3")[0].shape == (128, 128, 128)
    before = records_of(store)
    second = run(capsys, source, store, "--masks", masks, "--localizer", model)
    assert (second["unchanged"], second["crops"]) == (1, 2 * LEVELS)
    after = records_of(store)
    assert after["1.2.1"] == before["1.2.1"]
    assert after["1.2.1"].localizer == "mask:rsna"
    assert after["1.2.2"].localizer.startswith("model:")
    third = run(capsys, source, store, "--masks", masks, "--localizer", model)
    assert third["unchanged"] == 3


def test_another_localizer_affects_only_the_studies_that_the_first_one_cropped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, masks, model = mixed(tmp_path)
    run(capsys, source, tmp_path / "s", "--masks", masks, "--localizer", model)
    better = write_network(tmp_path / "better.onnx", block_network(threshold_hu=280.0))
    again = run(capsys, source, tmp_path / "s", "--masks", masks, "--localizer", better)
    assert again["unchanged"] == 1
    # A copy of the network under another name is the same network.
    moved = write_network(tmp_path / "moved.onnx", block_network(threshold_hu=280.0))
    last = run(capsys, source, tmp_path / "s", "--masks", masks, "--localizer", moved)
    assert last["unchanged"] == 3


def test_a_mask_added_later_replaces_the_localizer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, masks, model = mixed(tmp_path, studies=2)
    given = ["--masks", masks, "--localizer", model]
    run(capsys, source, tmp_path / "s", *given)
    write_mask(masks, "1.2.2", LIFE_SIZE)
    assert run(capsys, source, tmp_path / "s", *given)["unchanged"] == 1
    assert {r.localizer for r in records_of(tmp_path / "s").values()} == {"mask:rsna"}


def test_only_masked_leaves_the_other_studies_to_a_later_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, masks, model = mixed(tmp_path)
    first = run(capsys, source, tmp_path / "s", "--masks", masks, "--only-masked")
    assert (first["listed"], first["crops"], first["slices"]) == (1, LEVELS, SLICES)
    assert list(records_of(tmp_path / "s")) == ["1.2.1"]
    rest = run(capsys, source, tmp_path / "s", "--masks", masks, "--localizer", model)
    assert (rest["listed"], rest["unchanged"], rest["slices"]) == (3, 1, 2 * SLICES)


def test_in_two_passes_each_object_is_read_once_and_the_model_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, masks, model = mixed(tmp_path)
    with serve_s3(monkeypatch) as s3:
        for root, prefix in ((source, "in"), (masks, "masks")):
            files = {str(p.relative_to(root)): p for p in root.rglob("*") if p.is_file()}
            content = {key: path.read_bytes() for key, path in files.items()}
            ObjectFolder(s3.url(prefix)).put_all(content)
        ObjectFolder(s3.url("models")).put("m.onnx", Path(model).read_bytes())
        requested: Counter[str] = Counter()

        def count(method: str, path: str) -> None:
            if method == "GET" and path.endswith((".dcm", ".nii", ".onnx")):
                requested[path.rpartition("/")[0].rpartition("/")[2] + path[path.rfind("/") :]] += 1

        s3.fault = count
        given = [s3.url("in"), tmp_path / "s", "--masks", s3.url("masks")]
        run(capsys, *given, "--only-masked")
        assert len(requested) == SLICES + 1
        run(capsys, *given, "--localizer", s3.url("models/m.onnx"))
    # Slices, one mask and the model are read once each.
    assert len(requested) == 3 * SLICES + 2
    assert set(requested.values()) == {1}


def test_missing_levels_have_a_reason_and_the_others_are_cropped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, _, _ = mixed(tmp_path, studies=1)
    names = ["other", "C2", "C4", "C3", "C5", "C6", "C7"]
    model = write_network(tmp_path / "swaps.onnx", block_network(names=names))
    summary = run(capsys, source, tmp_path / "s", "--localizer", model)
    assert (summary["code"], summary["committed"], summary["crops"]) == (0, 1, 4)
    vertebrae = {v.level: v for v in records_of(tmp_path / "s")["1.2.1"].vertebrae}
    kinds = {level: vertebra.outcome for level, vertebra in vertebrae.items()}
    assert kinds == dict.fromkeys(LOCALIZED_LEVELS, "cropped") | {
        "C1": "vertebra-not-found",
        "C3": "vertebra-out-of-order",
        "C4": "vertebra-out-of-order",
    }
    assert "above C3" in vertebrae["C4"].reason
    rows = StudyStore.open(str(tmp_path / "s")).read_table("vertebrae").to_pylist()
    assert [row["reason"] == "" for row in rows] == [k == "cropped" for k in kinds.values()]


def test_a_study_in_which_nothing_is_found_is_quarantined(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, masks, _ = mixed(tmp_path, studies=2)
    blind = np.zeros((len(CLASSES), SIZE, SIZE, SIZE), np.float32)
    blind[0] = 1
    model = write_network(tmp_path / "blind.onnx", constant_network(blind))
    summary = run(capsys, source, tmp_path / "s", "--masks", masks, "--localizer", model)
    assert (summary["code"], summary["committed"], summary["quarantined"]) == (1, 1, 1)
    record = records_of(tmp_path / "s")["1.2.2"]
    assert record.kind == "vertebra-not-found"
    assert "sees nothing of it" in record.reason


def test_a_vertebra_in_soft_tissue_is_rejected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, _, _ = mixed(tmp_path, studies=1)
    wrong = np.zeros((len(CLASSES), SIZE, SIZE, SIZE), np.float32)
    wrong[CLASSES.index("C4"), 10:14, 2:8, 3:9] = 1
    wrong[0] = 1 - wrong.sum(0)
    model = write_network(tmp_path / "wrong.onnx", constant_network(wrong))
    run(capsys, source, tmp_path / "s", "--localizer", model)
    assert "mean HU inside C4 is" in records_of(tmp_path / "s")["1.2.1"].reason


def test_the_run_log_has_the_time_of_locating_the_vertebrae(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, _, model = mixed(tmp_path, studies=1)
    run(capsys, source, tmp_path / "s", "--localizer", model)
    (log,) = (tmp_path / "s" / "logs").iterdir()
    (line,) = [json.loads(text) for text in log.read_text().splitlines()]
    assert 0 < line["locate_seconds"] < line["seconds"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only-masked"], "--only-masked needs --masks"),
        (["--localizer", "/no/such.onnx"], "localizer-invalid"),
        (["--localizer", "m.onnx", "--vertebrae", "T1"], "localizer finds C1 to C7"),
    ],
)
def test_wrong_usage_is_reported_before_the_source_is_read(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    source, _, _ = mixed(tmp_path, studies=1)
    assert main(["run", str(source), str(tmp_path / "s"), "--serial", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "s").exists()
