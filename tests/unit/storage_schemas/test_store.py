import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from storage_schemas import arrays, crops
from storage_schemas.canonical import sha256_voxels
from storage_schemas.catalog import TABLES, make_table, table_schema
from storage_schemas.errors import StoreError, UsageError
from storage_schemas.geometry import StackGeometry
from storage_schemas.records import StoredArray, StudyRecord
from storage_schemas.store import StudyStore
from storage_schemas.targets import COMPETITION, Targets

STUDY = "1.2.3"
LUMBAR = Targets.of(("L1", "L2"), "any_fracture", level_weights=(1, 3))
SHAPE = (3, 40, 50)
SHARD = f"volumes.zarr/{STUDY}/C1/0/c/0/0/0"
METADATA = f"volumes.zarr/{STUDY}/C1/0/zarr.json"


def study_objects(seed: int = 0) -> tuple[StudyRecord, dict[str, bytes], np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    hu = generator.integers(-1024, 2000, SHAPE).astype(np.int16)
    mask = (hu > 200).astype(np.uint8)
    geometry = StackGeometry(
        SHAPE, tuple((0.0, 0.0, float(z)) for z in range(3)), (1.0, 0, 0), (0, 1.0, 0), (0.5, 0.5)
    )
    cube = {"cspine": {"affine": np.eye(4).tolist()}}
    objects = crops.create_group(STUDY, {})
    objects |= arrays.create_array(f"{STUDY}/overview", hu, cube)
    objects |= crops.create_crop(f"{STUDY}/C1", hu, mask, geometry, {"masked": True})
    paths = {f"{STUDY}/overview": hu, f"{STUDY}/C1/0": hu, f"{STUDY}/C1/labels/vertebra/0": mask}
    record = StudyRecord(
        study=STUDY,
        patient=STUDY,
        outcome="committed",
        config_sha256="c",
        input_sha256="i",
        inputs=(),
        arrays=tuple(
            StoredArray(path, SHAPE, data.dtype.name, sha256_voxels(data), 1)
            for path, data in paths.items()
        ),
        metadata=tuple(
            (key, hashlib.sha256(data).hexdigest())
            for key, data in objects.items()
            if key.endswith("zarr.json")
        ),
    )
    return record, objects, hu, mask


@pytest.fixture
def store(tmp_path: Path) -> StudyStore:
    return StudyStore.create(str(tmp_path / "store"))


def filled(store: StudyStore) -> tuple[StudyRecord, np.ndarray, np.ndarray]:
    record, objects, hu, mask = study_objects()
    store.commit(record, objects)
    return record, hu, mask


def test_a_committed_study_reads_back_whole(store: StudyStore) -> None:
    record, hu, mask = filled(store)
    again = StudyStore.open(store.url)
    assert again.studies() == [STUDY]
    assert again.record(STUDY) == record
    crop = again.read_crop(STUDY, "C1")
    np.testing.assert_array_equal(crop.hu, hu)
    np.testing.assert_array_equal(crop.mask, mask)
    cube, affine = again.read_overview(STUDY)
    np.testing.assert_array_equal(cube, hu)
    np.testing.assert_array_equal(affine, np.eye(4))
    assert again.check(record) == []


def test_a_store_may_live_in_memory() -> None:
    store = StudyStore.create("memory://a-store")
    record, objects, hu, _ = study_objects()
    store.commit(record, objects)
    np.testing.assert_array_equal(StudyStore.open("memory://a-store").read_crop(STUDY, "C1").hu, hu)
    store.discard(STUDY)
    assert store.studies() == []


def test_a_missing_shard_is_named_and_never_a_fill_value(store: StudyStore) -> None:
    record, _, _ = filled(store)
    (Path(store.objects.root) / SHARD).unlink()
    with pytest.raises(StoreError) as caught:
        store.read_crop(STUDY, "C1")
    assert (caught.value.kind, caught.value.key) == ("array-missing", f"{STUDY}/C1/0")
    assert [error.kind for error in store.check(record)] == ["array-missing"]


@pytest.mark.parametrize("place", [0, 100, -1])
def test_a_flipped_bit_on_disk_is_named(store: StudyStore, place: int) -> None:
    record, _, _ = filled(store)
    path = Path(store.objects.root) / SHARD
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)
    with pytest.raises(StoreError) as caught:
        store.read_crop(STUDY, "C1")
    assert (caught.value.kind, caught.value.key) == ("array-damaged", f"{STUDY}/C1/0")
    assert [error.kind for error in store.check(record)] == ["array-damaged"]


def test_a_truncated_shard_on_disk_is_named(store: StudyStore) -> None:
    record, _, _ = filled(store)
    path = Path(store.objects.root) / SHARD
    path.write_bytes(path.read_bytes()[:-7])
    assert [error.kind for error in store.check(record)] == ["array-damaged"]


def test_an_array_of_another_study_is_not_taken_for_this_one(store: StudyStore) -> None:
    record, _, _ = filled(store)
    _, others, _, _ = study_objects(seed=1)
    (Path(store.objects.root) / SHARD).write_bytes(others[f"{STUDY}/C1/0/c/0/0/0"])
    assert [error.kind for error in store.check(record)] == ["array-mismatch"]


def test_changed_metadata_is_found_even_where_the_array_still_reads(store: StudyStore) -> None:
    record, _, _ = filled(store)
    path = Path(store.objects.root) / METADATA
    path.write_bytes(path.read_bytes().replace(b'"attributes": {}', b'"attributes": {"a": 1}'))
    assert [error.kind for error in store.check(record)] == ["metadata-damaged"]


def test_committing_again_leaves_nothing_of_before(store: StudyStore) -> None:
    filled(store)
    record, objects, _, _ = study_objects(seed=2)
    without_mask = {key: data for key, data in objects.items() if "labels" not in key}
    store.commit(record, without_mask)
    left = sorted(
        str(path.relative_to(Path(store.objects.root) / "volumes.zarr"))
        for path in (Path(store.objects.root) / "volumes.zarr" / STUDY).rglob("*")
        if path.is_file()
    )
    assert left == sorted(without_mask)


def test_a_study_may_write_only_below_its_own_key(store: StudyStore) -> None:
    record, _, _, _ = study_objects()
    with pytest.raises(ValueError, match="must not write"):
        store.commit(record, {"9.9/zarr.json": b"{}"})
    assert store.studies() == []


def test_a_failed_commit_leaves_no_record(
    store: StudyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(store)
    record, objects, _, _ = study_objects(seed=3)
    put = store.objects.put

    def full_disk(key: str, data: bytes) -> None:
        if "labels" in key:
            raise OSError(28, "No space left on device")
        put(key, data)

    monkeypatch.setattr(store.objects, "put", full_disk)
    with pytest.raises(OSError, match="No space"):
        store.commit(record, objects)
    assert store.studies() == []


def test_a_record_under_another_study_is_refused(store: StudyStore) -> None:
    filled(store)
    records = Path(store.objects.root) / "records"
    (records / "9.9.json").write_bytes((records / f"{STUDY}.json").read_bytes())
    with pytest.raises(StoreError, match=r"record of 1\.2\.3"):
        store.record("9.9")


def test_a_file_beside_the_records_is_no_study(store: StudyStore) -> None:
    record, _, _ = filled(store)
    records = Path(store.objects.root) / "records"
    for name in ("notes.json", ".1.2.9.json.71.partial", "1.2.9.txt", "1.2.9"):
        (records / name).write_bytes(b"{}")
    assert store.studies() == [STUDY]
    assert list(store.records()) == [record]


def test_a_place_without_a_store_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="store-not-found"):
        StudyStore.open(str(tmp_path))


def test_an_unwritable_place_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UsageError, match="store-unwritable"):
        StudyStore.create(str(tmp_path / "file" / "store"))


@pytest.mark.parametrize("targets", [COMPETITION, LUMBAR])
def test_tables_keep_their_columns_and_targets(store: StudyStore, targets: Targets) -> None:
    assert store.targets() == COMPETITION
    for name in TABLES:
        store.write_table(name, make_table(name, [], targets))
        assert store.read_table(name).schema.equals(table_schema(name, targets))
    assert store.targets() == targets


def test_the_metadata_name_no_targets_but_those_that_differ_from_the_competitions() -> None:
    assert make_table("studies", [], COMPETITION).schema.metadata == {
        b"schema": b"cspine-catalog/2"
    }
    metadata = make_table("studies", [], LUMBAR).schema.metadata
    assert json.loads(metadata[b"targets"]) == LUMBAR.to_json()


@pytest.mark.parametrize(
    "stored", [b"", b"{}", b"[" * 100_000, json.dumps(Targets.of(["L4"]).to_json()).encode()]
)
def test_a_table_of_other_targets_than_its_columns_is_refused(
    store: StudyStore, stored: bytes
) -> None:
    table = make_table("studies", [], LUMBAR)
    metadata = {**table.schema.metadata, b"targets": stored}
    with pytest.raises(StoreError, match="table-invalid"):
        store.write_table("studies", table.replace_schema_metadata(metadata))


def test_a_patients_label_may_not_be_named_as_another_column() -> None:
    with pytest.raises(UsageError, match="scanner"):
        make_table("studies", [], Targets.of(["L1"], patient="scanner"))


def test_a_process_may_end_right_after_it_read_tables(store: StudyStore) -> None:
    for name in TABLES:
        store.write_table(name, make_table(name, [], COMPETITION))
    script = (
        "import sys; from storage_schemas.store import StudyStore\n"
        "for name in sys.argv[2:]: StudyStore.open(sys.argv[1]).read_table(name).schema\n"
    )
    for _ in range(3):
        ended = subprocess.run(
            [sys.executable, "-c", script, store.objects.root, *TABLES],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (ended.returncode, ended.stderr) == (0, "")


def test_a_table_that_is_missing_or_none_is_named(store: StudyStore) -> None:
    with pytest.raises(StoreError, match="table-missing"):
        store.read_table("studies")
    path = Path(store.objects.root) / "catalog" / "studies.parquet"
    path.parent.mkdir()
    path.write_bytes(b"PAR1 no PAR1")
    with pytest.raises(StoreError, match="table-invalid"):
        store.read_table("studies")
