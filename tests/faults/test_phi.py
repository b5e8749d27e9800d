"""No identifying header field is stored: canaries in all fields are found nowhere else."""

import io
import logging
import shutil
from pathlib import Path

import pydicom
import pytest
from pydicom.datadict import DicomDictionary
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from pipeline.cli import main
from storage_schemas.store import StudyStore
from tests.studies import write_mask, write_study

CANARY = "CANARY"
TEXT = {"LO", "SH", "PN", "ST", "LT", "UT", "UC", "AE"}
NEEDED = {"Modality", "SOPClassUID", "ImageType", "PhotometricInterpretation"}
FIELDS = 300


def canary_fields() -> list[str]:
    """Keywords of text fields, identifying ones first."""
    named = [
        "PatientName", "PatientID", "OtherPatientNames", "PatientAddress", "PatientComments",
        "InstitutionName", "InstitutionAddress", "ReferringPhysicianName", "OperatorsName",
        "AccessionNumber", "StudyID", "StudyDescription", "SeriesDescription", "ProtocolName",
        "StationName", "DeviceSerialNumber", "Manufacturer", "ManufacturerModelName",
        "ConvolutionKernel", "ImageComments", "AdditionalPatientHistory", "RescaleType",
    ]  # fmt: skip
    others = [
        keyword
        for tag, (vr, vm, _, retired, keyword) in DicomDictionary.items()
        if tag >> 16 > 7
        and vr in TEXT
        and vm.startswith("1")
        and not retired
        and keyword not in NEEDED
    ]
    return list(dict.fromkeys([*named, *others]))[:FIELDS]


def salt_with_canaries(dataset: Dataset, number: int) -> None:
    for keyword in canary_fields():
        value = f"{CANARY}{number}" if keyword != "PatientName" else f"{CANARY}^{number}"
        setattr(dataset, keyword, value)
    for date in ("PatientBirthDate", "StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate"):
        setattr(dataset, date, "19010203")
    inner = Dataset()
    inner.PatientName = f"{CANARY}^Nested"
    inner.add_new(0x00091001, "LO", f"{CANARY} private nested")
    outer = Dataset()
    outer.ReferencedStudySequence = Sequence([inner])
    outer.CodeMeaning = f"{CANARY} code"
    dataset.RequestAttributesSequence = Sequence([outer, outer])
    for group in range(0x0009, 0x0069, 2):
        if group in (0x0028,):
            continue
        block = dataset.private_block(group, f"{CANARY} CREATOR", create=True)
        block.add_new(0x01, "LO", f"{CANARY} private {group}")
        block.add_new(0x02, "UT", f"{CANARY} long private {group}" * 5)


def salted_study(source: Path, study: str) -> None:
    write_study(source, study)
    for number, path in enumerate(sorted((source / study).iterdir())):
        dataset = pydicom.dcmread(path)
        salt_with_canaries(dataset, number)
        dataset.save_as(path, enforce_file_format=True)


@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # pydicom minds canaries of odd lengths
def test_no_canary_of_300_fields_and_private_groups_leaves_the_header(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(canary_fields()) == FIELDS
    source = tmp_path / "source"
    salted_study(source, "1.2.1")
    salted_study(source, "1.2.2")
    # Error messages must not quote values.
    first, second, third, *_ = sorted((source / "1.2.2").iterdir())
    first.write_bytes(first.read_bytes()[:-300])
    for path, keyword, value in (
        (second, "RescaleSlope", 1.5),
        (third, "BurnedInAnnotation", "YES"),
    ):
        dataset = pydicom.dcmread(path)
        setattr(dataset, keyword, value)
        dataset.save_as(path, enforce_file_format=True)
    write_mask(tmp_path / "masks", "1.2.1")
    monkeypatch.setenv("CSPINE_PATIENT_SALT", "pepper")

    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    store = str(tmp_path / "store")
    try:
        arguments = ["run", str(source), store, "--masks", str(tmp_path / "masks"), "--verbose"]
        assert main([*arguments, "--serial"]) == 1
        assert main(["run", str(source), str(tmp_path / "again"), "--workers", "1"]) == 1
        assert main(["inspect", str(source)]) == 1
        assert main(["inspect", str(source), "--json"]) == 1
        main(["verify", store, "--source", str(source), "--cross-check", "1"])
        assert main(["report", store, str(tmp_path / "store" / "report.html")]) == 0
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    kinds = {row["kind"] for row in StudyStore.open(store).read_table("quarantine").to_pylist()}
    assert {"truncated", "rescale-invalid", "burned-in-annotation"} <= kinds
    output = capsys.readouterr()
    for text in (output.out, output.err, stream.getvalue()):
        assert CANARY not in text
        assert "19010203" not in text
    shutil.rmtree(source)
    count = 0
    for path in tmp_path.rglob("*"):
        assert CANARY not in path.name
        if path.is_file():
            count += 1
            data = path.read_bytes()
            assert CANARY.encode() not in data, path
            assert b"19010203" not in data, path
    assert count > 60
    for table in ("studies", "vertebrae", "slices", "series", "quarantine"):
        assert CANARY not in str(StudyStore.open(store).read_table(table).to_pylist())
    assert stream.getvalue(), "nothing was logged, so nothing was looked at"


def test_burned_in_objects_are_quarantined_and_pages_and_reports_unused(tmp_path: Path) -> None:
    write_study(tmp_path / "source", "1.2.1")
    folder = tmp_path / "source" / "1.2.1"
    odd = {
        "burned-in-annotation": {"BurnedInAnnotation": "YES"},
        "sop-class-unsupported": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"},
    }
    for number, fields in enumerate(odd.values()):
        dataset = pydicom.dcmread(folder / "1.dcm")
        for keyword, value in fields.items():
            setattr(dataset, keyword, value)
        dataset.save_as(folder / f"{100 + number}.dcm", enforce_file_format=True)
    report = pydicom.dcmread(folder / "1.dcm")
    report.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.67"  # X-Ray Radiation Dose SR
    del report.PixelData
    report.save_as(folder / "102.dcm", enforce_file_format=True)
    assert main(["run", str(tmp_path / "source"), str(tmp_path / "s"), "--serial"]) == 1
    rows = StudyStore.open(str(tmp_path / "s")).read_table("quarantine").to_pylist()
    found = {row["key"].rpartition("/")[2]: row["kind"] for row in rows}
    assert found == {"100.dcm": "burned-in-annotation"}
    inputs = StudyStore.open(str(tmp_path / "s")).record("1.2.1").inputs
    unused = {entry.key.rpartition("/")[2]: entry.outcome for entry in inputs}
    assert (unused["101.dcm"], unused["102.dcm"]) == ("unused:page", "unused:document")
