import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from storage_schemas.canonical import canonical_json, sha256_json
from storage_schemas.errors import StoreError
from storage_schemas.geometry import StackGeometry
from storage_schemas.records import (
    InputObject,
    RecordHead,
    SeriesRecord,
    StoredArray,
    StoredSlice,
    StudyRecord,
    StudyVolumeRecord,
    Vertebra,
)
from storage_schemas.study_key import StudyKey

FROZEN = Path(__file__).parents[2] / "data" / "record.json"
FIRST = FROZEN.with_name("record_1.json")


def example() -> StudyRecord:
    geometry = StackGeometry(
        shape=(2, 3, 4),
        positions=((-1.5, 2.0, 3.0), (-1.5, 2.0, 4.25)),
        row_direction=(1.0, 0.0, 0.0),
        column_direction=(0.0, 1.0, 0.0),
        pixel_spacing=(0.5, 0.5),
    )
    return StudyRecord(
        study=StudyKey("1.2.3"),
        patient="1.2.3",
        outcome="committed",
        config_sha256="c0",
        input_sha256="10",
        inputs=(
            InputObject("1.2.3/1.dcm", 9, "aa", "stored", "", "1.2.840.10008.1.2", "native"),
            InputObject("1.2.3/2.dcm", 7, "bb", "stored", "", "1.2.840.10008.1.2", "native"),
            InputObject("1.2.3/3.dcm", 5, "cc", "truncated", "5 of 9 bytes"),
        ),
        localizer="mask:rsna",
        volume=StudyVolumeRecord(
            series="1.2.3.4",
            scanner="00ff",
            geometry=geometry,
            transposed=False,
            flipped=(True, False, False),
            slices=(StoredSlice("1.2.3/2.dcm", 0, 2), StoredSlice("1.2.3/1.dcm", 0, None)),
            hu_sha256="dd",
        ),
        vertebrae=(
            Vertebra(
                "C1", "cropped", "", (0, 2, 0, 3, 0, 4), (0, 1, 1, 2, 1, 3), voxels=2, mean_hu=412.5
            ),
            Vertebra("C2", "vertebra-not-found", "the mask does not hold it"),
        ),
        arrays=(
            StoredArray("1.2.3/C1/0", (2, 3, 4), "int16", "ee", 120),
            StoredArray("1.2.3/overview_levels", (128, 128, 128), "uint8", "ab", 900),
        ),
        metadata=(("1.2.3/C1/zarr.json", "ff"),),
        series=(
            SeriesRecord("1.2.3.4", 2, 2, 2, "original", "sharp", chosen=True, reason="finest"),
            SeriesRecord("1.2.3.5", None, 1, 1, "scout", "unknown", chosen=False, reason="a scout"),
        ),
    )


def test_a_record_reads_back_equal() -> None:
    record = example()
    assert StudyRecord.from_bytes(record.to_bytes(), "k") == record


def test_the_form_of_a_record_is_frozen() -> None:
    assert example().to_bytes() == FROZEN.read_bytes()


def test_a_record_of_the_first_version_is_read() -> None:
    old = FIRST.read_bytes()
    assert b"cspine-record/1" in old
    assert StudyRecord.from_bytes(old, "k") == replace(example(), series=())


def test_a_changed_record_of_the_first_version_is_found() -> None:
    with pytest.raises(StoreError, match="record-invalid"):
        StudyRecord.from_bytes(FIRST.read_bytes().replace(b"412.5", b"412.6"), "k")


def test_any_change_of_a_value_is_found() -> None:
    changed = example().to_bytes().replace(b"412.5", b"412.6")
    with pytest.raises(StoreError) as caught:
        StudyRecord.from_bytes(changed, "records/1.2.3.json")
    assert (caught.value.kind, caught.value.key) == ("record-invalid", "records/1.2.3.json")


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"null", b"\xff", b'{"schema": 3'])
def test_bytes_that_are_no_record_are_named(data: bytes) -> None:
    with pytest.raises(StoreError, match="record-invalid"):
        StudyRecord.from_bytes(data, "k")


def test_a_record_with_a_missing_field_is_named() -> None:
    document = json.loads(example().to_bytes())
    del document["sha256"], document["patient"]
    document["sha256"] = sha256_json(document)
    with pytest.raises(StoreError, match="patient"):
        StudyRecord.from_bytes(canonical_json(document), "k")


def test_another_version_is_told_apart_from_damage() -> None:
    newer = example().to_bytes().replace(b"cspine-record/2", b"cspine-record/9")
    with pytest.raises(StoreError, match="schema-unsupported"):
        StudyRecord.from_bytes(newer, "k")


def test_a_quarantined_study_has_a_record_without_volume() -> None:
    record = replace(
        example(), outcome="quarantined", kind="no-axial-stack", volume=None, vertebrae=()
    )
    assert StudyRecord.from_bytes(record.to_bytes(), "k") == record


def sealed(document: dict[str, Any]) -> bytes:
    """A record with whatever content, under its own true digest."""
    document = {name: value for name, value in document.items() if name != "sha256"}
    return canonical_json(document | {"sha256": sha256_json(document)})


def put(document: Any, path: str, value: Any) -> None:
    *steps, last = (int(step) if step.isdigit() else step for step in path.split("."))
    for step in steps:
        document = document[step]
    document[last] = value


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("study", 3, r"`str`, got `int` - at `\$\.study`"),
        ("study", "../1.2", "no DICOM UID"),
        ("outcome", "lost", r"\$\.outcome"),
        ("kind", None, r"\$\.kind"),
        ("inputs", {}, r"\$\.inputs"),
        ("inputs.1", [], r"\$\.inputs\[1\]"),
        ("inputs.1.size", -1, r"\$\.inputs\[1\]\.size"),
        ("inputs.1.size", "7", r"\$\.inputs\[1\]\.size"),
        ("inputs.1.size", 7.5, r"\$\.inputs\[1\]\.size"),
        ("inputs.1.size", 10**30, r"\$\.inputs\[1\]\.size"),
        ("inputs.1.size", True, r"\$\.inputs\[1\]\.size"),
        ("volume", None, "without a volume"),
        ("volume.flipped", [True], r"\$\.volume\.flipped"),
        ("volume.slices.0.instance_number", 10**30, r"\$\.volume\.slices\[0\]"),
        ("volume.slices.0.frame", -1, r"\$\.volume\.slices\[0\]\.frame"),
        ("volume.slices", [], "0 slices"),
        ("volume.geometry.shape", [2, 3, 10**12], r"\$\.volume\.geometry\.shape\[2\]"),
        ("volume.geometry.shape", [3, 3, 4], "3 slices, but 2 positions"),
        ("volume.geometry.positions.0.1", "far", r"\$\.volume\.geometry\.positions\[0\]\[1\]"),
        ("volume.geometry.pixel_spacing.0", 0, r"\$\.volume\.geometry\.pixel_spacing\[0\]"),
        ("volume.geometry.classes.0", "bent", "bent"),
        ("vertebrae.0.box", None, "C1 has the box None"),
        ("vertebrae.0.box", [0, 2, 0, 3, 0], r"\$\.vertebrae\[0\]\.box"),
        ("vertebrae.0.box", [0, 2, 0, 3, 0, 40], "C1 has the box"),
        ("vertebrae.0.extent", [1, 1, 0, 3, 0, 4], "C1 has the box"),
        ("vertebrae.0.level", "C7", "no array"),
        ("arrays.0.dtype", "float64", r"\$\.arrays\[0\]\.dtype"),
        ("arrays.0.shape.1", 0, r"\$\.arrays\[0\]\.shape\[1\]"),
        ("arrays.0.path", "1.2.4/C1/0", "no object of the study"),
        ("arrays.0.path", "1.2.3/../../etc/passwd", "no object of the study"),
        ("metadata.0.0", "/etc/passwd", "no object of the study"),
        ("metadata.0", ["1.2.3/C1/zarr.json"], r"\$\.metadata\[0\]"),
    ],
)
def test_a_wrong_value_under_a_true_digest_is_refused_with_its_place(
    path: str, value: Any, said: str
) -> None:
    document = json.loads(example().to_bytes())
    put(document, path, value)
    with pytest.raises(StoreError, match=said) as caught:
        StudyRecord.from_bytes(sealed(document), "records/1.2.3.json")
    assert (caught.value.kind, caught.value.key) == ("record-invalid", "records/1.2.3.json")


@pytest.mark.parametrize(
    "value",
    [
        b"1e400",
        b"-1e400",
        b"NaN",
        b"Infinity",
        b"9" * 5000,
        b"[" * 100_000,
        b'"\\ud800"',
        b'"\xff"',
    ],
)
@pytest.mark.parametrize("kind", [StudyRecord, RecordHead])
def test_hostile_json_is_a_record_that_is_invalid(
    kind: type[StudyRecord] | type[RecordHead], value: bytes
) -> None:
    for name in (b'"mean_hu":412.5', b'"patient":"1.2.3"', b'"schema":"cspine-record/2"'):
        field = name.partition(b":")[0]
        hostile = example().to_bytes().replace(name, field + b":" + value)
        assert hostile != example().to_bytes()
        with pytest.raises(StoreError, match="record-invalid"):
            kind.from_bytes(hostile, "k")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("study", "../1"),
        ("study", None),
        ("outcome", "lost"),
        ("inputs", 3),
        ("kind", 3),
        ("reason", None),
        ("config_sha256", 1),
        ("input_sha256", []),
    ],
)
def test_a_head_of_the_wrong_kind_is_refused(path: str, value: Any) -> None:
    document = json.loads(example().to_bytes())
    put(document, path, value)
    with pytest.raises(StoreError, match=rf"\$\.{path}") as caught:
        RecordHead.from_bytes(sealed(document), "k")
    assert caught.value.kind == "record-invalid"


def test_a_record_and_its_head_have_a_checked_key() -> None:
    data = example().to_bytes()
    assert type(StudyRecord.from_bytes(data, "k").study) is StudyKey
    assert type(RecordHead.from_bytes(data, "k").study) is StudyKey
