"""A table with a flipped bit reads as it was written, or is refused; never as other values."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.cli import main
from storage_schemas.catalog import TABLES
from storage_schemas.errors import StoreError
from storage_schemas.store import StudyStore
from tests.studies import write_cohort

FLIPS = 150


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> StudyStore:
    root = tmp_path_factory.mktemp("tables")
    source, masks = write_cohort(root, studies=3)
    labels = "StudyInstanceUID,patient_overall,C1,C2,C3,C4,C5,C6,C7\n"
    labels += "".join(f"1.2.{n},{n % 2},{n % 2},0,0,0,0,0,0\n" for n in range(1, 4))
    (root / "train.csv").write_text(labels)
    command = ["run", str(source), str(root / "store"), "--masks", str(masks), "--serial"]
    assert main([*command, "--labels", str(root / "train.csv")]) == 0
    return StudyStore.open(str(root / "store"))


@pytest.mark.parametrize("name", TABLES)
def test_no_flipped_bit_of_a_table_gives_other_values(store: StudyStore, name: str) -> None:
    path = Path(store.url) / "catalog" / f"{name}.parquet"
    whole, expected = path.read_bytes(), store.read_table(name)
    random = np.random.default_rng(len(whole))
    refused = 0
    try:
        for place in random.integers(8 * len(whole), size=FLIPS).tolist():
            flipped = bytearray(whole)
            flipped[place // 8] ^= 1 << place % 8
            path.write_bytes(flipped)
            try:
                found = store.read_table(name)
            except StoreError:
                refused += 1
                continue
            assert found.equals(expected, check_metadata=True)
    finally:
        path.write_bytes(whole)
    assert refused > FLIPS / 2


@pytest.mark.parametrize("name", TABLES)
def test_a_table_cut_short_is_refused(store: StudyStore, name: str) -> None:
    path = Path(store.url) / "catalog" / f"{name}.parquet"
    whole = path.read_bytes()
    try:
        for length in np.linspace(0, len(whole) - 1, 20).astype(int).tolist():
            path.write_bytes(whole[:length])
            with pytest.raises(StoreError, match="table-invalid"):
                store.read_table(name)
    finally:
        path.write_bytes(whole)
