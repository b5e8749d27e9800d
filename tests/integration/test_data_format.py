"""docs/data-format.md suffices to read a store: this reader uses only what the page specifies."""

import hashlib
import json
import re
import struct
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numcodecs import blosc

from pipeline.cli import main
from storage_schemas.arrays import create_array
from storage_schemas.catalog import TABLES, table_schema
from storage_schemas.store import StudyStore
from storage_schemas.targets import COMPETITION
from tests.conftest import REPOSITORY
from tests.studies import LEVELS, write_cohort

BYTES = {"int16": 2, "uint8": 1}
LOST = {"int16": -32768, "uint8": 255}
CASTAGNOLI = 0x82F63B78


def crc32c(data: bytes) -> int:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (CASTAGNOLI if byte & 1 else 0)
        table.append(byte)
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def closed(data: bytes) -> bytes:
    """The bytes before a closing checksum that holds."""
    (claimed,) = struct.unpack("<I", data[-4:])
    assert crc32c(data[:-4]) == claimed
    return data[:-4]


def read_array(folder: Path) -> tuple[tuple[int, ...], str, bytes]:
    """Shape, type and the little-endian C-order bytes of an array."""
    document = json.loads((folder / "zarr.json").read_text())
    shape, kind = document["shape"], document["data_type"]
    a_slice = prod(shape[1:]) * BYTES[kind]
    slab = min(shape[0], max(1, 1048576 // a_slice))
    slabs = -(-shape[0] // slab)
    shard = (folder / "c/0/0/0").read_bytes()
    index = struct.unpack(f"<{2 * slabs}Q", closed(shard[-(16 * slabs + 4) :]))
    parts = []
    for offset, length in zip(index[::2], index[1::2], strict=True):
        part = blosc.decompress(closed(shard[offset : offset + length]))
        assert len(part) == slab * a_slice
        parts.append(part)
    data = b"".join(parts)[: shape[0] * a_slice]
    assert LOST[kind] not in struct.unpack(f"<{prod(shape)}{'h' if kind == 'int16' else 'B'}", data)
    return tuple(shape), kind, data


def canonical(document: Any) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode() + b"\n"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("format")
    source, masks = write_cohort(root, studies=1)
    (source / "1.2.1" / "3.dcm").write_bytes(b"")
    assert main(["run", str(source), str(root / "s"), "--serial", "--masks", str(masks)]) == 1
    return root / "s"


def test_a_record_proves_itself_and_every_array_as_described(store: Path) -> None:
    text = (store / "records/1.2.1.json").read_bytes()
    record = json.loads(text)
    claimed = record.pop("sha256")
    assert hashlib.sha256(canonical(record)).hexdigest() == claimed
    assert text == canonical(record | {"sha256": claimed})
    assert len(record["arrays"]) == 2 * LEVELS + 2, "crops, masks, the overview and its levels"
    for array in record["arrays"]:
        shape, kind, data = read_array(store / "volumes.zarr" / array["path"])
        assert (list(shape), kind) == (array["shape"], array["dtype"])
        assert hashlib.sha256(data).hexdigest() == array["sha256"]
    for key, digest in record["metadata"]:
        assert hashlib.sha256((store / "volumes.zarr" / key).read_bytes()).hexdigest() == digest


def test_an_array_of_several_slabs_is_read_as_described(tmp_path: Path) -> None:
    voxels = np.arange(2500 * 30 * 20, dtype=np.int64).reshape(2500, 30, 20) % 3000 - 1000
    for key, data in create_array("a", voxels.astype(np.int16), {}).items():
        (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / key).write_bytes(data)
    shape, kind, data = read_array(tmp_path / "a")
    assert (shape, kind) == ((2500, 30, 20), "int16")
    assert data == voxels.astype("<i2").tobytes()


def test_a_crops_attributes_place_its_voxels_as_described(store: Path) -> None:
    folder = store / "volumes.zarr/1.2.1/C3"
    block = json.loads((folder / "zarr.json").read_text())["attributes"]["cspine"]
    geometry = block["geometry"]
    crop = StudyStore.open(str(store)).read_crop("1.2.1", "C3")
    shape, _, data = read_array(folder / "0")
    assert data == crop.hu.astype("<i2").tobytes()
    for z, y, x in ((0, 0, 0), (1, 2, 3), tuple(n - 1 for n in shape)):
        point = [
            position
            + y * geometry["pixel_spacing"][0] * down
            + x * geometry["pixel_spacing"][1] * along
            for position, down, along in zip(
                geometry["positions"][z],
                geometry["column_direction"],
                geometry["row_direction"],
                strict=True,
            )
        ]
        np.testing.assert_allclose(point, crop.geometry.to_lps([z, y, x]))
    z0, z1, y0, y1, x0, x1 = block["box"]
    assert (z1 - z0, y1 - y0, x1 - x0) == shape
    assert len(block["source_slices"]) == shape[0]


def documented(heading: str) -> list[list[str]]:
    """The rows of the first table below a heading of the document."""
    text = (REPOSITORY / "docs/data-format.md").read_text()
    below = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [line.strip("|").split("|") for line in below.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def test_the_document_names_every_attribute_and_every_field(store: Path) -> None:
    block = json.loads((store / "volumes.zarr/1.2.1/C3/zarr.json").read_text())["attributes"]
    wanted = set(block["cspine"]) - {"geometry"} | {
        f"geometry.{name}" for name in block["cspine"]["geometry"]
    }
    assert {
        name for row in documented("Attributes") for name in re.findall("`(.+?)`", row[0])
    } == wanted

    record = json.loads((store / "records/1.2.1.json").read_text())
    rows = {name: row[1] for row in documented("Records") for name in re.findall("`(.+?)`", row[0])}
    assert set(rows) == set(record)
    for field in ("inputs", "volume", "vertebrae", "arrays"):
        entry = record[field] if field == "volume" else record[field][0]
        assert set(entry) <= set(re.findall(r"`(\w+)`", rows[field]))


def test_the_document_names_every_column_with_its_type() -> None:
    found = {row[0].strip("`"): row[2] for row in documented("Tables")}
    assert found == {
        name: ", ".join(
            f"`{field.name}` {field.type}{'?' if field.nullable else ''}"
            for field in table_schema(name, COMPETITION)
        )
        for name in TABLES
    }
