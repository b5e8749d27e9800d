import json
from dataclasses import replace
from pathlib import Path

import pytest

from storage_schemas.canonical import canonical_json, sha256_json
from storage_schemas.errors import StoreError
from storage_schemas.geometry import StackGeometry
from storage_schemas.records import (
    InputObject,
    StoredArray,
    StoredSlice,
    StudyRecord,
    StudyVolumeRecord,
    Vertebra,
)

FROZEN = Path(__file__).parents[2] / "data" / "record.json"


def example() -> StudyRecord:
    geometry = StackGeometry(
        shape=(2, 3, 4),
        positions=((-1.5, 2.0, 3.0), (-1.5, 2.0, 4.25)),
        row_direction=(1.0, 0.0, 0.0),
        column_direction=(0.0, 1.0, 0.0),
        pixel_spacing=(0.5, 0.5),
    )
    return StudyRecord(
        study="1.2.3",
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
    )


def test_a_record_reads_back_equal() -> None:
    record = example()
    assert StudyRecord.from_bytes(record.to_bytes(), "k") == record


def test_the_form_of_a_record_is_frozen() -> None:
    assert example().to_bytes() == FROZEN.read_bytes()


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
    newer = example().to_bytes().replace(b"cspine-record/1", b"cspine-record/9")
    with pytest.raises(StoreError, match="schema-unsupported"):
        StudyRecord.from_bytes(newer, "k")


def test_a_quarantined_study_has_a_record_without_volume() -> None:
    record = replace(
        example(), outcome="quarantined", kind="no-axial-stack", volume=None, vertebrae=()
    )
    assert StudyRecord.from_bytes(record.to_bytes(), "k") == record
