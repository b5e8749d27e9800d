"""The real command on ordinary folders: what lies beside the slices costs no study, and says so."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from pipeline.cli import main
from storage_schemas.canonical import sha256_voxels
from storage_schemas.outcomes import is_refused, is_unused
from storage_schemas.store import StudyStore
from tests import made_dicom
from tests.strangers import PAGE, Objects, hounsfield, one_slice, renamed, stack

STUDY = made_dicom.STUDY
TWENTY = range(20)
GOOD = stack(TWENTY)
DIGEST = sha256_voxels(hounsfield(TWENTY))
APPLE = b"\0\5\x16\7\0\2\0\0Mac OS X" + bytes(200)


def lay(root: Path, objects: Objects) -> Path:
    for key, data in objects.items():
        path = root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def run(source: Path, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    store = source.parent / "store"
    shutil.rmtree(store, ignore_errors=True)
    code = main(["run", str(source), str(store), "--serial", "--json", *more])
    summary = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    return summary | {"code": code, "store": StudyStore.open(str(store))}


def dicomdir() -> bytes:
    data = Dataset()
    data.FileSetID, data.DirectoryRecordSequence = "X", []
    data.SOPClassUID, data.SOPInstanceUID = "1.2.840.10008.1.3.10", "1.2.3"
    return made_dicom.write(data, made_dicom.EXPLICIT)


def report_object() -> bytes:
    data = made_dicom.make_dataset(np.zeros((2, 2), np.uint16))
    data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.67"
    return made_dicom.write(data, made_dicom.EXPLICIT)


def cd_export() -> Objects:
    folder = "DICOM/PAT00001/STD00001"
    soft = stack(TWENTY, 1, "t", SeriesInstanceUID="1.2.3.4.1", ConvolutionKernel="B30f")
    bone = stack(TWENTY, ConvolutionKernel="B70f", SeriesNumber=3)
    scout = one_slice(0, 6, 9, SeriesInstanceUID="1.2.3.4.8",
                      ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])  # fmt: skip
    return (
        {"DICOMDIR": dicomdir(), "README.TXT": b"viewer", "AUTORUN.INF": b"[autorun]",
         "VIEWER/viewer.exe": b"MZ" + bytes(99), "VIEWER/data.bin": bytes(range(256))}
        | renamed({f"IM{n:05}": data for n, data in enumerate(bone.values())}, f"{folder}/SE3")
        | renamed({f"IM{n:05}": data for n, data in enumerate(soft.values())}, f"{folder}/SE2")
        | {f"{folder}/SE1/IM00001": scout}
    )  # fmt: skip


BESIDE: dict[str, tuple[Objects, int]] = {
    "nothing": ({}, 0),
    "AppleDouble files": (renamed({f"._s{n}.dcm": APPLE for n in TWENTY}, STUDY), 20),
    ".DS_Store beside the studies": ({".DS_Store": b"\0\0\0\1Bud1" + bytes(99)}, 0),
    "three files of operating systems": (
        renamed({".DS_Store": b"junk", "Thumbs.db": b"junk", "desktop.ini": b"junk"}, STUDY), 3),
    "a __MACOSX folder": (renamed({f"._s{n}.dcm": APPLE for n in TWENTY}, f"__MACOSX/{STUDY}"), 0),
    "a .git folder": ({".git/HEAD": b"ref", ".git/objects/ab/cd": bytes(range(200))}, 0),
    "sidecars": (renamed({"metadata.json": b"{}", "LICENSE": b"MIT License", "thumb.png":
                          b"\x89PNG\r\n\x1a\n" + bytes(99), "labels.csv": b"a,b\n"}, STUDY), 4),
    "NIfTI": (renamed({"ct.nii": bytes(400), "seg.nii.gz": b"\x1f\x8b\x08" + bytes(99)}, STUDY), 2),
    "a DICOMDIR in the study": ({f"{STUDY}/DICOMDIR": dicomdir()}, 1),
    "a DICOMDIR beside the studies": ({"DICOMDIR": dicomdir()}, 0),
    "a dose report": ({f"{STUDY}/report.dcm": report_object()}, 1),
    "csv and text beside the studies": ({"train.csv": b"x,y\n", "LICENSE": b"MIT", "notes": b"a"},
                                        0),
    "folders of other files": ({"docs/readme.md": b"#", "masks/1.2.3.nii.gz": b"\x1f\x8b\x08",
                                "weights/model.bin": bytes(range(250))}, 0),
    "dose pages": (renamed({f"d{n}.dcm": one_slice(0, 5, n, ImageType=PAGE, RescaleSlope=None,
                            ImagePositionPatient=None) for n in range(9)}, STUDY), 9),
    "copies": (renamed({f"copy of {key}": data for key, data in GOOD.items()}, STUDY), 20),
}  # fmt: skip


@pytest.mark.parametrize("name", BESIDE)
@pytest.mark.parametrize("layout", [None, "study", "scan"])
def test_what_lies_beside_a_good_study_changes_no_exit_code(
    name: str, layout: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more, unused = BESIDE[name]
    source = lay(tmp_path / "source", renamed(GOOD, STUDY) | more)
    summary = run(source, capsys, *(["--layout", layout] if layout else []))
    assert (summary["code"], summary["listed"], summary["committed"]) == (0, 1, 1)
    assert (summary["refused"], summary["slices"]) == (0, 20)
    record = summary["store"].record(STUDY)
    assert record.volume.hu_sha256 == DIGEST
    assert sum(is_unused(entry.outcome) for entry in record.inputs) == unused
    tables = summary["store"]
    assert tables.read_table("quarantine").num_rows == 0
    assert tables.read_table("studies")["unused"].to_pylist() == [unused]
    assert main(["inspect", str(source)]) == 0
    assert main(["verify", tables.url, "--source", str(source)]) == 0


def test_a_cd_is_one_study_with_its_sharp_series(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = lay(tmp_path / "cd", cd_export())
    summary = run(source, capsys, "--layout", "scan")
    assert (summary["code"], summary["listed"], summary["committed"]) == (0, 1, 1)
    record = summary["store"].record(STUDY)
    assert record.volume.hu_sha256 == DIGEST
    rows = summary["store"].read_table("series").to_pylist()
    assert [(row["kernel"], row["image"], row["chosen"]) for row in rows] == [
        ("sharp", "original", True),
        ("soft", "original", False),
        ("sharp", "scout", False),
    ]
    assert [row["reason"] for row in rows][1:] == [
        "kernel soft", "a scout (localizer radiograph)",
    ]  # fmt: skip
    assert main(["inspect", str(source), "--json"]) == 0
    (view,) = json.loads(capsys.readouterr().out)["studies"]
    assert [s["reason"] for s in view["series"]] == [row["reason"] for row in rows]


def test_the_series_may_be_named_for_all_studies_or_for_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = lay(tmp_path / "cd", cd_export())
    soft = sha256_voxels(hounsfield(TWENTY, 1))
    table = tmp_path / "series.csv"
    table.write_text(f"study,series\n{STUDY},B30\n")
    for more in (["--series", "b30"], ["--series", "1.2.3.4.1"], ["--series-table", str(table)]):
        record = run(source, capsys, *more)["store"].record(STUDY)
        assert record.volume.hu_sha256 == soft
    store = tmp_path / "store"
    again = ["run", str(source), str(store), "--serial", "--json"]
    main([*again, "--series-table", str(table)])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["unchanged"] == 1
    main(again)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["unchanged"] == 0


@pytest.mark.parametrize("text", ["study\n1.2.3\n", "study,series\n1,\n", "study,series\n1,(\n",
                                  "study,series\n1,2\n1,3\n"])  # fmt: skip
def test_a_table_of_series_that_cannot_be_used_is_refused(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = lay(tmp_path / "source", renamed(GOOD, STUDY))
    (tmp_path / "series.csv").write_text(text)
    more = ["--series-table", str(tmp_path / "series.csv"), "--serial"]
    assert main(["run", str(source), str(tmp_path / "s"), *more]) == 2
    assert "csv-invalid" in capsys.readouterr().err


@pytest.mark.parametrize(
    "uid", ["ID_f65ffc7eb4", hashlib.sha256(b"x").hexdigest(), "1.2.3." + "4" * 70, "anon-0001"]
)
@pytest.mark.parametrize("folder", ["uid", "any/tree"])
@pytest.mark.filterwarnings("ignore:.*VR UI:UserWarning")
def test_identifiers_that_are_no_uids_stand_for_studies(
    uid: str, folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = {"StudyInstanceUID": uid, "SeriesInstanceUID": f"{uid}s"}
    objects = stack(TWENTY, **fields)
    source = lay(tmp_path / "source", renamed(objects, uid if folder == "uid" else folder))
    summary = run(source, capsys)
    assert (summary["code"], summary["committed"], summary["refused"]) == (0, 1, 0)
    store = summary["store"]
    (record,) = store.records()
    assert record.volume.hu_sha256 == sha256_voxels(hounsfield(TWENTY))
    assert record.study.startswith("2.25.")
    stored = (store.read_table("studies").to_pylist(), record.volume.series, record.series)
    assert uid not in str(stored)
    if folder == "uid":
        assert run(source, capsys, "--layout", "study")["committed"] == 1


def test_a_folder_that_is_named_otherwise_is_refused_with_the_flag_to_give(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = lay(tmp_path / "source", renamed(GOOD, "DICOM"))
    main(["run", str(source), str(tmp_path / "s"), "--serial", "--layout", "study"])
    rows = StudyStore.open(str(tmp_path / "s")).read_table("quarantine").to_pylist()
    assert {row["kind"] for row in rows} == {"study-key-invalid"}
    main(["report", str(tmp_path / "s"), str(tmp_path / "report.html")])
    assert "--layout scan" in (tmp_path / "report.html").read_text()
    assert run(source, capsys)["committed"] == 1


def bad_slices(count: int) -> Objects:
    return GOOD | {f"s{n}.dcm": GOOD[f"s{n}.dcm"][:-9] for n in range(count)}


@pytest.mark.parametrize(
    ("objects", "code", "kind", "refused"),
    [
        (bad_slices(1), 1, "", 1),
        (bad_slices(2), 1, "too-many-bad-slices", 20),
        (GOOD | {"s20.dcm": bytes(500)}, 1, "", 1),
        (GOOD | {"s20.dcm": b""}, 1, "", 1),
        (GOOD | {"s20.dcm": b"<html>404</html>"}, 1, "", 1),
        (GOOD | stack(range(20, 30), 1, "t", 21, PixelSpacing=[0.7, 0.7]), 1,
         "too-many-bad-slices", 30),
        (stack(range(30), 1, "t", SeriesInstanceUID="1.2.9", RescaleSlope=None) | GOOD, 0, "", 0),
    ],
    ids=["one bad", "two bad", "zeros", "empty", "an error page", "fallen out", "another series"],
)  # fmt: skip
def test_only_slices_of_the_chosen_stack_count_as_bad(
    objects: Objects, code: int, kind: str, refused: int, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    summary = run(lay(tmp_path / "source", renamed(objects, STUDY)), capsys)
    record = summary["store"].record(STUDY)
    assert (summary["code"], record.kind) == (code, kind)
    assert sum(is_refused(entry.outcome) for entry in record.inputs) == refused


def test_a_quarantined_study_keeps_its_overview_and_the_report_shows_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = run(lay(tmp_path / "source", renamed(bad_slices(2), STUDY)), capsys)["store"]
    record = store.record(STUDY)
    assert (record.outcome, record.volume) == ("quarantined", None)
    assert [array.path for array in record.arrays] == [f"{STUDY}/overview"]
    assert store.check(record) == []
    assert store.read_overview(STUDY)[0].max() > -1024
    assert [part.chosen for part in record.series] == [True]
    assert main(["report", store.url, str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "Pictures of quarantined studies" in page
    assert page.count("<svg viewBox") >= 2


NUMBERS: dict[str, Callable[[], bytes]] = {
    "InstanceNumber beyond 64 bits": lambda: one_slice(20, InstanceNumber=1).replace(
        b"IS\x02\x001 ", b"IS\x14\x00" + b"9" * 20
    ),
    "InstanceNumber of 5000 digits": lambda: one_slice(20, InstanceNumber=1).replace(
        b"IS\x02\x001 ", b"IS\x88\x13" + b"9" * 5000
    ),
    "SeriesNumber beyond 64 bits": lambda: one_slice(20, SeriesNumber=1).replace(
        b"\x20\x00\x11\x00IS\x02\x001 ", b"\x20\x00\x11\x00IS\x14\x00" + b"9" * 20
    ),
    "AcquisitionNumber with a letter": lambda: one_slice(20, AcquisitionNumber=1).replace(
        b"\x20\x00\x12\x00IS\x02\x001 ", b"\x20\x00\x12\x00IS\x02\x00x1"
    ),
    "an infinite position": lambda: one_slice(20).replace(b"0\\0\\20 ", b"0\\0\\inf"[:7]),
    "a slope of 1e300": lambda: one_slice(20, RescaleSlope="1e300"),
    "an intercept of 1e300": lambda: one_slice(20, RescaleIntercept="1e300"),
    "NumberOfFrames of 40 digits": lambda: one_slice(20, NumberOfFrames=1).replace(
        b"IS\x02\x001 ", b"IS\x28\x00" + b"9" * 40
    ),
    "a tiny pixel spacing": lambda: one_slice(20, PixelSpacing=["1e-300", "1e-300"]),
    "an acquisition time of letters": lambda: one_slice(20, AcquisitionTime="101010").replace(
        b"101010", b"midday"
    ),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_no_number_of_one_object_fails_the_run(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    objects = renamed(GOOD | {"odd.dcm": NUMBERS[name]()}, STUDY)
    summary = run(lay(tmp_path / "source", objects), capsys)
    assert (summary["committed"], summary["failed"]) == (1, 0)
    assert summary["slices"] + summary["refused"] + summary["unused"] == 21
    assert main(["catalog", summary["store"].url]) == 0
