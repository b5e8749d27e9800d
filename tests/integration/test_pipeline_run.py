"""`cspine-pipeline run` on valid studies, faulty studies, and wrong usage."""

import json
import os
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.cli import main
from pipeline.dicom.decoders import decode_frame
from storage_schemas.errors import StoreError
from storage_schemas.outcomes import is_refused
from storage_schemas.store import StudyStore
from tests.commandlines import exit_code
from tests.studies import LEVELS, SLICES, labels, slice_dataset, write_cohort, write_study

TRAIN = "StudyInstanceUID,patient_overall,C1,C2,C3,C4,C5,C6,C7\n"
BOXES = "StudyInstanceUID,x,y,width,height,slice_number\n"


def tree(root: Path) -> dict[str, bytes]:
    """Content of all files except the logs, which differ from run to run."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.parent.name not in ("logs", "lease")
    }


def run(
    source: Path, store: Path, *more: str, capsys: pytest.CaptureFixture[str]
) -> dict[str, int]:
    code = main(["run", str(source), str(store), "--serial", "--json", *more])
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["committed"] + summary["quarantined"] + summary["failed"] == summary["listed"]
    return {**summary, "code": code}


def test_the_crops_of_a_cohort_have_the_voxels_of_its_slices(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, masks = write_cohort(tmp_path, studies=1)
    hu = write_study(tmp_path / "again", "1.2.1", seed=1)
    summary = run(source, tmp_path / "s", "--masks", str(masks), capsys=capsys)
    assert (summary["code"], summary["committed"], summary["crops"]) == (0, 1, LEVELS)
    store = StudyStore.open(str(tmp_path / "s"))
    (record,) = store.records()
    assert record.volume is not None
    assert [entry.key for entry in record.volume.slices] == [
        f"1.2.1/{SLICES - z}.dcm" for z in range(SLICES)
    ]
    for number, vertebra in enumerate(record.vertebrae, start=1):
        crop = store.read_crop("1.2.1", vertebra.level)
        z0, z1, y0, y1, x0, x1 = vertebra.box or ()
        np.testing.assert_array_equal(crop.hu, hu[z0:z1, y0:y1, x0:x1])
        np.testing.assert_array_equal(crop.mask, labels()[z0:z1, y0:y1, x0:x1] == number)
    assert main(["verify", str(tmp_path / "s")]) == 0


def test_serial_and_cluster_write_the_same_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, masks = write_cohort(tmp_path)
    run(source, tmp_path / "a", "--masks", str(masks), capsys=capsys)
    arguments = ["run", str(source), str(tmp_path / "b"), "--masks", str(masks), "--workers", "2"]
    assert main(arguments) == 0
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_a_second_run_processes_only_missing_and_changed_studies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, masks = write_cohort(tmp_path)
    options = ["--masks", str(masks)]
    assert run(source, tmp_path / "s", *options, capsys=capsys)["unchanged"] == 0
    before = tree(tmp_path / "s")
    again = run(source, tmp_path / "s", *options, capsys=capsys)
    assert (again["unchanged"], again["slices"], again["committed"]) == (3, 0, 3)
    assert tree(tmp_path / "s") == before

    changed = source / "1.2.2" / "7.dcm"
    os.utime(changed, (1, 1))
    (tmp_path / "s" / "records" / "1.2.3.json").unlink()
    (masks / "1.2.1.nii").unlink()
    partly = run(source, tmp_path / "s", *options, capsys=capsys)
    assert (partly["unchanged"], partly["committed"]) == (0, 3)
    assert run(source, tmp_path / "s", *options, "--margin", "3", capsys=capsys)["unchanged"] == 0


def test_limit_takes_the_first_studies_and_a_later_run_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, _ = write_cohort(tmp_path)
    assert run(source, tmp_path / "s", "--limit", "2", capsys=capsys)["listed"] == 2
    rest = run(source, tmp_path / "s", capsys=capsys)
    assert (rest["listed"], rest["unchanged"]) == (3, 2)


def test_a_faulty_slice_does_not_affect_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, masks = write_cohort(tmp_path, studies=1)
    bad = source / "1.2.1" / "5.dcm"
    bad.write_bytes(bad.read_bytes()[:-500])
    summary = run(source, tmp_path / "s", "--masks", str(masks), capsys=capsys)
    assert (summary["code"], summary["committed"], summary["refused"]) == (1, 1, 1)
    store = StudyStore.open(str(tmp_path / "s"))
    (row,) = store.read_table("quarantine").to_pylist()
    assert (row["study"], row["key"], row["kind"]) == ("1.2.1", "1.2.1/5.dcm", "truncated")


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("many truncated", "too-many-bad-slices"),
        ("another study inside", "study-mixed"),
        ("no images", "no-dicom"),
        ("mask elsewhere", "mask-outside-volume"),
        ("mask without levels", "vertebra-not-found"),
        ("mask is text", "mask-unreadable"),
    ],
)
def test_a_faulty_study_is_quarantined_and_the_other_is_committed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str, kind: str
) -> None:
    source, masks = write_cohort(tmp_path, studies=2)
    study, mask = source / "1.2.1", masks / "1.2.1.nii"
    if fault == "many truncated":
        for number in range(1, 6):
            (study / f"{number}.dcm").write_bytes(b"")
    elif fault == "another study inside":
        stranger = slice_dataset("9.9", 40, np.zeros((40, 48), np.int16))
        stranger.save_as(study / "stranger.dcm", enforce_file_format=True)
    elif fault == "no images":
        shutil.rmtree(study)
        study.mkdir()
        (study / "notes.txt").write_text("no DICOM")
    elif fault == "mask elsewhere":
        data = bytearray(mask.read_bytes())
        data[292:296] = np.float32(900).tobytes()  # the x of the affine's origin
        mask.write_bytes(data)
    elif fault == "mask without levels":
        data = mask.read_bytes()
        mask.write_bytes(data[:352] + bytes(len(data) - 352))
    else:
        mask.write_text("no NIfTI")
    summary = run(source, tmp_path / "s", "--masks", str(masks), capsys=capsys)
    assert (summary["code"], summary["committed"], summary["quarantined"]) == (1, 1, 1)
    store = StudyStore.open(str(tmp_path / "s"))
    record = store.record("1.2.1")
    assert (record.outcome, record.kind) == ("quarantined", kind)
    assert len(record.inputs) == len(list(study.iterdir()))
    assert all(entry.outcome not in ("", "stored") and entry.reason for entry in record.inputs)
    quarantine = store.read_table("quarantine").to_pylist()
    refused = [entry for entry in record.inputs if is_refused(entry.outcome)]
    assert len(quarantine) == 1 + len(refused)
    assert store.check(store.record("1.2.2")) == []


def test_a_folder_whose_name_is_not_a_uid_is_quarantined_and_never_a_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, _ = write_cohort(tmp_path, studies=1)
    shutil.copytree(source / "1.2.1", source / "John Doe")
    summary = run(source, tmp_path / "s", capsys=capsys)
    assert (summary["committed"], summary["quarantined"]) == (1, 1)
    names = {part for path in (tmp_path / "s").rglob("*") for part in path.parts}
    assert not any("Doe" in name for name in names)
    rows = StudyStore.open(str(tmp_path / "s")).read_table("quarantine").to_pylist()
    assert {row["kind"] for row in rows} == {"study-key-invalid"}


def test_files_beside_the_studies_are_accounted_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, _ = write_cohort(tmp_path, studies=1)
    shutil.copy(source / "1.2.1" / "5.dcm", source / "loose.dcm")
    summary = run(source, tmp_path / "s", capsys=capsys)
    assert (summary["committed"], summary["quarantined"]) == (1, 1)
    rows = StudyStore.open(str(tmp_path / "s")).read_table("quarantine").to_pylist()
    assert {row["kind"] for row in rows} == {"study-key-invalid"}
    assert "loose.dcm" in {row["key"] for row in rows}


def test_a_study_behind_a_symbolic_link_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, _ = write_cohort(tmp_path, studies=1)
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "1.2.1").symlink_to(source / "1.2.1")
    run(source, tmp_path / "s", capsys=capsys)
    summary = run(linked, tmp_path / "t", capsys=capsys)
    assert summary["committed"] == 1
    stores = [StudyStore.open(str(tmp_path / name)) for name in "st"]
    assert stores[0].record("1.2.1").arrays == stores[1].record("1.2.1").arrays


def test_a_named_pipe_among_the_slices_is_reported_and_not_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, _ = write_cohort(tmp_path, studies=1)
    os.mkfifo(source / "1.2.1" / "pipe")
    assert main(["inspect", str(source)]) == 1
    assert "object-unreadable 1.2.1/pipe: no regular file" in capsys.readouterr().out
    for layout in ("study", "scan"):
        summary = run(source, tmp_path / "s", "--layout", layout, capsys=capsys)
        assert summary["failed"] == 1


def test_a_file_name_that_is_not_utf8_is_escaped_in_records_and_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, _ = write_cohort(tmp_path, studies=1)
    name = os.fsdecode(b"\xff.dcm")
    (source / "1.2.1" / "5.dcm").rename(source / "1.2.1" / name)
    (source / "1.2.1" / os.fsdecode(b"\xfe.txt")).write_text("no DICOM")
    for more in ([], ["--hash-keys"]):
        store = tmp_path / f"s{len(more)}"
        summary = run(source, store, *more, capsys=capsys)
        assert (summary["committed"], summary["slices"], summary["unused"]) == (1, SLICES, 1)
        assert (summary["code"], summary["refused"]) == (0, 0)
        assert main(["verify", str(store), "--source", str(source)]) == 0
    inputs = StudyStore.open(str(tmp_path / "s0")).record("1.2.1").inputs
    assert [e.key for e in inputs if e.outcome == "unused:other-file"] == ["1.2.1/\\xfe.txt"]
    assert main(["inspect", str(source)]) == 0
    assert "1.2.1/\\xfe.txt" in capsys.readouterr().out


def test_a_study_without_mask_is_committed_with_its_overview(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, masks = write_cohort(tmp_path, studies=2)
    (masks / "1.2.2.nii").unlink()
    summary = run(source, tmp_path / "s", "--masks", str(masks), capsys=capsys)
    assert (summary["code"], summary["committed"], summary["crops"]) == (0, 2, LEVELS)
    store = StudyStore.open(str(tmp_path / "s"))
    assert store.read_overview("1.2.2")[0].shape == (128, 128, 128)
    assert {v.outcome for v in store.record("1.2.2").vertebrae} == {"not-localized"}
    assert np.unique(store.read_overview_levels("1.2.1")).tolist() == list(range(LEVELS + 1))
    with pytest.raises(StoreError, match="array-missing"):
        store.read_overview_levels("1.2.2")
    rows = store.read_table("studies").to_pylist()
    assert [row["overview_levels"] for row in rows] == [True, False]


def test_labels_and_boxes_are_in_the_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, masks = write_cohort(tmp_path, studies=3)
    train, boxes = tmp_path / "train.csv", tmp_path / "boxes.csv"
    train.write_text(TRAIN + "1.2.1,1,0,1,0,0,0,0,0\n1.2.2,1,0,1,0,0,0,0,0\n")
    # C2 fills z 22 to 24; file n holds z = SLICES - n.
    boxes.write_text(BOXES + f"1.2.1,20,14,6,5,{SLICES - 23}\n")
    run(
        source,
        tmp_path / "s",
        "--masks",
        str(masks),
        "--labels",
        str(train),
        "--boxes",
        str(boxes),
        capsys=capsys,
    )
    store = StudyStore.open(str(tmp_path / "s"))
    studies = {row["study"]: row for row in store.read_table("studies").to_pylist()}
    assert [studies[f"1.2.{n}"]["C2"] for n in (1, 2, 3)] == [1, 1, None]
    slices = store.read_table("slices").to_pylist()
    shown = [row for row in slices if row["fractured"] == 1]
    assert [(row["study"], row["level"], row["z"]) for row in shown] == [("1.2.1", "C2", 23)]
    box = (shown[0]["box_x"], shown[0]["box_y"], shown[0]["box_width"], shown[0]["box_height"])
    corner = store.record("1.2.1").vertebrae[1].box or ()
    assert box == (20 - corner[4], 14 - corner[2], 6, 5)
    of_c2 = {
        study: {
            row["fractured"] for row in slices if row["study"] == study and row["level"] == "C2"
        }
        for study in ("1.2.1", "1.2.2", "1.2.3")
    }
    assert of_c2 == {"1.2.1": {0, 1}, "1.2.2": {None}, "1.2.3": {None}}

    # New labels change no array, and need no source.
    before = tree(tmp_path / "s" / "volumes.zarr")
    train.write_text(TRAIN + "1.2.3,0,0,0,0,0,0,0,0\n")
    assert main(["catalog", str(tmp_path / "s"), "--labels", str(train)]) == 0
    rows = store.read_table("vertebrae").to_pylist()
    assert {row["fractured"] for row in rows if row["study"] == "1.2.3"} == {0}
    assert tree(tmp_path / "s" / "volumes.zarr") == before


def test_the_tables_come_from_the_records_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, masks = write_cohort(tmp_path)
    run(source, tmp_path / "s", "--masks", str(masks), capsys=capsys)
    before = tree(tmp_path / "s" / "catalog")
    shutil.rmtree(tmp_path / "s" / "catalog")
    shutil.rmtree(source)
    assert main(["catalog", str(tmp_path / "s")]) == 0
    assert tree(tmp_path / "s" / "catalog") == before


def test_verify_reports_damaged_objects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, masks = write_cohort(tmp_path, studies=2)
    run(source, tmp_path / "s", "--masks", str(masks), capsys=capsys)
    (tmp_path / "s/volumes.zarr/1.2.1/C3/0/c/0/0/0").unlink()
    record = tmp_path / "s/records/1.2.2.json"
    record.write_bytes(record.read_bytes()[:-9])
    assert main(["verify", str(tmp_path / "s"), "--json"]) == 1
    output = capsys.readouterr()
    assert json.loads(output.out)["damaged_studies"] == 2
    assert "1.2.1/C3/0" in output.err
    assert "record-invalid" in output.err
    run(source, tmp_path / "s", "--masks", str(masks), capsys=capsys)
    assert main(["verify", str(tmp_path / "s")]) == 1, "only the unreadable record was done again"


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (["run", "{tmp}/none", "{tmp}/s"], "source-not-found"),
        (["run", "{tmp}/empty", "{tmp}/s"], "source-empty"),
        (["run", "{tmp}/source", "{tmp}/file/s"], "store-unwritable"),
        (["run", "{tmp}/source", "{tmp}/s", "--labels", "{tmp}/boxes.csv"], "csv-invalid"),
        (["run", "{tmp}/source", "{tmp}/s", "--labels", "{tmp}/other.csv"], "csv-unknown-study"),
        (["run", "{tmp}/source", "{tmp}/s", "--labels", "{tmp}/none.csv"], "source-not-found"),
        (["run", "{tmp}/source", "{tmp}/s", "--masks", "{tmp}/none"], "source-not-found"),
        (["run", "{tmp}/source", "{tmp}/s", "--masks", "{tmp}/empty"], "mask-unreadable"),
        (["run", "{tmp}/source", "{tmp}/s", "--margin", "-1"], "config-invalid"),
        (
            ["run", "{tmp}/source", "{tmp}/s", "--scheduler", "tcp://10.0.0.1:8786"],
            "config-invalid",
        ),
        (["run", "{tmp}/source", "{tmp}/s", "--scheduler-file", "{tmp}/none"], "config-invalid"),
        (["run", "nosuch://bucket/x", "{tmp}/s"], "source-not-found"),
        (
            ["run", "{tmp}/source", "{tmp}/s", "--serial", "--performance-report", "r.html"],
            "config-invalid",
        ),
        (
            ["run", "{tmp}/source", "{tmp}/s", "--performance-report", "{tmp}/file/r.html"],
            "config-invalid",
        ),
        (["phantom", "{tmp}/p", "--studies", "0"], "config-invalid"),
        (["phantom", "{tmp}/source"], "config-invalid"),
        (["verify", "{tmp}/none"], "store-not-found"),
        (["catalog", "{tmp}/none"], "store-not-found"),
        (["report", "{tmp}/none", "{tmp}/r.html"], "store-not-found"),
        (["report", "nosuch://bucket/x", "{tmp}/r.html"], "store-not-found"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], kind: str
) -> None:
    write_study(tmp_path / "source", "1.2.1")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "boxes.csv").write_text(BOXES)
    (tmp_path / "other.csv").write_text(TRAIN + "9.9,0,0,0,0,0,0,0,0\n")
    assert main([part.format(tmp=tmp_path) for part in arguments]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("{")]
    assert len(lines) == 1
    assert lines[0].startswith("cspine-pipeline: ")
    assert f"[{kind}]" in lines[0]


def test_a_source_that_does_not_exist_leaves_no_store(tmp_path: Path) -> None:
    assert main(["run", str(tmp_path / "none"), str(tmp_path / "s")]) == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["run", "a", "b", "--workers", "x"], "--workers: expected a whole number at least 1"),
        (["run", "a", "b", "--study-seconds", "-1"], "--study-seconds: expected a number at"),
        (["verify", "a", "--cross-check", "2"], "--cross-check: expected a number at least"),
        (["report", "a", "b.html", "--gallery", "-1"], "--gallery: expected a whole number"),
        (["report", "a"], "required: OUT.html"),
    ],
)
def test_a_wrong_command_line_is_one_line_that_names_the_help(
    capsys: pytest.CaptureFixture[str], arguments: list[str], what: str
) -> None:
    assert exit_code(main, shlex.join(arguments)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("cspine-pipeline: ")
    assert what in line
    assert line.endswith(f"see cspine-pipeline {arguments[0]} --help")


def test_an_unexpected_error_is_one_line_and_verbose_shows_the_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(*arguments: object, **settings: object) -> None:
        raise ZeroDivisionError("nobody\nexpected this")

    write_study(tmp_path / "source", "1.2.1")
    monkeypatch.setattr("pipeline.run.plan_run", break_down)
    arguments = ["run", str(tmp_path / "source"), str(tmp_path / "s"), "--serial"]
    assert main(arguments) == 3
    error = capsys.readouterr().err
    what = "cspine-pipeline: unexpected ZeroDivisionError: nobody expected this; --verbose"
    assert error.startswith(what)
    assert len(error.splitlines()) == 1
    assert main([*arguments, "--verbose"]) == 3
    assert "in break_down" in capsys.readouterr().err


def test_the_report_is_self_contained_and_its_counts_add_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, masks = write_cohort(tmp_path, studies=2)
    (source / "1.2.2" / "3.dcm").write_bytes(b"")
    run(source, tmp_path / "s", "--masks", str(masks), capsys=capsys)
    page = tmp_path / "out" / "report.html"
    assert main(["report", str(tmp_path / "s"), str(page)]) == 0
    assert f"report: {page}" in capsys.readouterr().out
    html = page.read_text()
    for word in ("http:", "https:", 'src="/', 'href="/'):
        assert word not in html
    for count in (f"{2 * SLICES - 1} stored", "1 refused", "2 committed", f"{2 * LEVELS} cropped"):
        assert f"</span>{count}</li>" in html


def test_patients_are_grouped_by_a_salted_digest_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, _ = write_cohort(tmp_path, studies=1)
    run(source, tmp_path / "plain", capsys=capsys)
    monkeypatch.setenv("CSPINE_PATIENT_SALT", "pepper")
    run(source, tmp_path / "salted", capsys=capsys)
    plain, salted = (
        StudyStore.open(str(tmp_path / name)).record("1.2.1").patient
        for name in ("plain", "salted")
    )
    assert plain == "1.2.1"
    assert len(salted) == 32
    assert "patient" not in salted


def test_repair_processes_only_damaged_studies_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, masks = write_cohort(tmp_path, studies=3)
    run(source, tmp_path / "s", "--masks", str(masks), capsys=capsys)
    before = tree(tmp_path / "s")
    shard = tmp_path / "s/volumes.zarr/1.2.1/C3/0/c/0/0/0"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    (tmp_path / "s/volumes.zarr/1.2.2/overview/zarr.json").unlink()
    summary = run(source, tmp_path / "s", "--masks", str(masks), "--repair", capsys=capsys)
    assert (summary["unchanged"], summary["committed"]) == (1, 3)
    assert tree(tmp_path / "s") == before


def test_verify_compares_the_source_and_uses_a_second_decoder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, _ = write_cohort(tmp_path, studies=3)
    run(source, tmp_path / "s", capsys=capsys)
    verify = ["verify", str(tmp_path / "s"), "--source", str(source), "--json"]
    assert main([*verify, "--cross-check", "1"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["objects"], summary["decoded_twice"]) == (3 * SLICES, 3 * SLICES)

    changed = source / "1.2.1" / "4.dcm"
    changed.write_bytes(changed.read_bytes()[:-2] + b"\1\1")
    (source / "1.2.2" / "5.dcm").unlink()
    (source / "1.2.2" / "99.dcm").write_bytes(b"new")
    (source / "1.2.2" / "6.dcm").unlink()
    (source / "1.2.2" / "6.dcm").symlink_to("nowhere")
    shutil.rmtree(source / "1.2.3")
    assert main(verify) == 1
    errors = capsys.readouterr().err
    for what in (
        "1.2.1/4.dcm: its content has changed",
        "1.2.2/5.dcm: no longer in the source",
        "1.2.2/99.dcm: new in the source",
        "1.2.2/6.dcm: No such file",
        "1.2.3: the study is not in the source",
    ):
        assert what in errors


def test_a_wrong_decoder_is_found_by_the_second_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, _ = write_cohort(tmp_path, studies=1)
    run(source, tmp_path / "s", capsys=capsys)

    def one_pixel_off(*arguments: object) -> tuple[np.ndarray, str]:
        words, name = decode_frame(*arguments)  # type: ignore[arg-type]  # passed through
        words = words.copy()
        words[3, 4] ^= 1
        return words, name

    monkeypatch.setattr("pipeline.dicom.crosscheck.decode_frame", one_pixel_off)
    arguments = ["verify", str(tmp_path / "s"), "--source", str(source), "--cross-check", "0.5"]
    assert main(arguments) == 1
    assert "native and pydicom differ in 1 pixels [decoders-disagree]" in capsys.readouterr().err


def test_hashed_keys_contain_no_file_name_and_still_verify(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, masks = write_cohort(tmp_path, studies=1)
    for path in sorted((source / "1.2.1").iterdir()):
        path.rename(path.with_name(f"Canary-Doe-{path.name}"))
    (source / "1.2.1" / "Canary-Doe-3.dcm").write_bytes(b"")
    boxes, train = tmp_path / "boxes.csv", tmp_path / "train.csv"
    train.write_text(TRAIN + "1.2.1,1,0,1,0,0,0,0,0\n")
    boxes.write_text(BOXES + f"1.2.1,20,14,6,5,{SLICES - 23}\n")
    run(
        source, tmp_path / "s", "--hash-keys", "--masks", str(masks), "--labels", str(train),
        "--boxes", str(boxes), capsys=capsys,
    )  # fmt: skip
    assert main(["report", str(tmp_path / "s"), str(tmp_path / "s" / "report.html")]) == 0
    for path in (tmp_path / "s").rglob("*"):
        assert "Canary" not in path.name
        assert path.is_dir() or b"Canary" not in path.read_bytes()
    store = StudyStore.open(str(tmp_path / "s"))
    for row in store.read_table("quarantine").to_pylist():
        assert "Canary" not in str(row)
    shown = [row["z"] for row in store.read_table("slices").to_pylist() if row["fractured"] == 1]
    assert shown == [23]
    assert main(["verify", str(tmp_path / "s"), "--source", str(source)]) == 0


def test_the_log_has_the_timings_of_every_study(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, _ = write_cohort(tmp_path, studies=2)
    run(source, tmp_path / "s", capsys=capsys)
    (log,) = (tmp_path / "s" / "logs").iterdir()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert sorted(line["study"] for line in lines) == ["1.2.1", "1.2.2"]
    assert all(line["seconds"] > 0 and line["at_seconds"] > 0 for line in lines)
