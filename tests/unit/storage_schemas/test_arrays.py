import json
from collections.abc import Iterator

import numpy as np
import pytest
import zarr

from storage_schemas import arrays, crops
from storage_schemas.errors import StoreError

PATH = "1.2.3/C4/0"


def voxels(shape: tuple[int, int, int] = (11, 300, 310), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1024, 2000, shape).astype(np.int16)


def read(objects: dict[str, bytes], path: str = PATH) -> np.ndarray:
    layout = arrays.read_layout(objects[f"{path}/zarr.json"], path)
    return arrays.decode_shard(objects[f"{path}/c/0/0/0"], layout, path)


def opened_by_zarr(objects: dict[str, bytes], path: str) -> zarr.Array | zarr.Group:
    store = zarr.storage.MemoryStore(
        {key: zarr.core.buffer.cpu.Buffer.from_bytes(data) for key, data in objects.items()}
    )
    return zarr.open(store, path=path, mode="r")


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 7, 5), (11, 300, 310), (2, 900, 900), (128,) * 3])
def test_an_array_reads_back_exactly_here_and_in_zarr_python(shape: tuple[int, int, int]) -> None:
    data = voxels(shape)
    objects = arrays.create_array(PATH, data, {})
    assert sorted(objects) == [f"{PATH}/c/0/0/0", f"{PATH}/zarr.json"]
    np.testing.assert_array_equal(read(objects), data)
    np.testing.assert_array_equal(np.asarray(opened_by_zarr(objects, PATH)[:]), data)


@pytest.mark.parametrize("shape", [(1, 1, 1), (11, 300, 310), (2, 900, 900), (17, 181, 90)])
@pytest.mark.parametrize("dtype", ["int16", "uint8"])
def test_a_shard_has_the_very_bytes_that_zarr_python_writes(
    shape: tuple[int, int, int], dtype: str
) -> None:
    data = (voxels(shape) & 127).astype(dtype)
    objects = arrays.create_array(PATH, data, {})
    described = {f"{PATH}/zarr.json": objects[f"{PATH}/zarr.json"]}
    stored = {key: zarr.core.buffer.cpu.Buffer.from_bytes(d) for key, d in described.items()}
    array = zarr.open_array(zarr.storage.MemoryStore(stored), path=PATH, mode="r+")
    array[:] = data
    assert stored[f"{PATH}/c/0/0/0"].to_bytes() == objects[f"{PATH}/c/0/0/0"]


@pytest.mark.parametrize("shape", [(1, 1, 1), (11, 300, 310), (128, 128, 128)])
def test_a_shard_is_the_sum_of_its_slabs(shape: tuple[int, int, int]) -> None:
    data = voxels(shape)
    objects = arrays.create_array(PATH, data, {})
    layout = arrays.read_layout(objects[f"{PATH}/zarr.json"], PATH)
    slabs = arrays.decode_slabs(objects[f"{PATH}/c/0/0/0"], layout, PATH)
    np.testing.assert_array_equal(np.concatenate([slab.copy() for slab in slabs]), data)


def test_a_mask_reads_back_exactly() -> None:
    mask = (voxels() > 300).astype(np.uint8)
    np.testing.assert_array_equal(read(arrays.create_array(PATH, mask, {})), mask)


def test_equal_voxels_give_equal_bytes() -> None:
    assert arrays.create_array(PATH, voxels(), {}) == arrays.create_array(PATH, voxels(), {})


def test_chunks_are_slabs_of_about_a_mebibyte_in_one_shard() -> None:
    layout = arrays.ArrayLayout((40, 256, 256), "int16")
    assert layout.chunk_shape == (8, 256, 256)
    assert layout.shard_shape == (40, 256, 256)
    metadata = json.loads(arrays.create_array(PATH, voxels((3, 4, 5)), {})[f"{PATH}/zarr.json"])
    (sharding,) = metadata["codecs"]
    assert [codec["name"] for codec in sharding["configuration"]["codecs"]] == [
        "bytes",
        "blosc",
        "crc32c",
    ]
    assert metadata["fill_value"] == -32768


def test_the_fill_value_is_refused_as_a_voxel() -> None:
    data = voxels((2, 3, 4))
    data[0, 0, 0] = -32768
    with pytest.raises(ValueError, match="fill value"):
        arrays.create_array(PATH, data, {})


def damaged_shards(shard: bytes) -> Iterator[tuple[str, bytes]]:
    generator = np.random.default_rng(7)
    index_start = len(shard) - (16 * 3 + 4)
    places = {*generator.integers(0, len(shard), 60), *range(index_start, len(shard)), 0, 1, 4, 5}
    for place in sorted(map(int, places)):
        bit = 1 << int(generator.integers(8))
        yield (
            f"bit of byte {place}",
            shard[:place] + bytes([shard[place] ^ bit]) + shard[place + 1 :],
        )
    for length in (0, 1, 3, 20, 51, 52, len(shard) // 2, len(shard) - 1):
        yield f"cut to {length}", shard[:length]
    yield "grown at the front", b"\0" + shard


def test_any_flipped_bit_and_any_cut_of_a_shard_is_named_damage() -> None:
    data = voxels((3, 600, 800))
    objects = arrays.create_array(PATH, data, {})
    layout = arrays.read_layout(objects[f"{PATH}/zarr.json"], PATH)
    assert layout.slabs == 3
    seen = 0
    for what, shard in damaged_shards(objects[f"{PATH}/c/0/0/0"]):
        with pytest.raises(StoreError) as caught:
            arrays.decode_shard(shard, layout, PATH)
        assert (caught.value.kind, caught.value.key) == ("array-damaged", PATH), what
        seen += 1
    assert seen > 100


def test_damage_names_the_chunk() -> None:
    objects = arrays.create_array(PATH, voxels((3, 600, 800)), {})
    layout = arrays.read_layout(objects[f"{PATH}/zarr.json"], PATH)
    shard = bytearray(objects[f"{PATH}/c/0/0/0"])
    shard[len(shard) // 2] ^= 1
    with pytest.raises(StoreError, match="chunk 1/0/0"):
        arrays.decode_shard(bytes(shard), layout, PATH)


def test_a_chunk_that_holds_fill_values_is_damage_even_under_a_good_checksum() -> None:
    """Another writer may leave a chunk out; zarr would then hand out fill values."""
    objects = arrays.create_array(PATH, voxels((3, 4, 5)), {})
    store: dict[str, object] = {}
    array = zarr.create_array(
        zarr.storage.MemoryStore(store),
        name=PATH,
        shape=(3, 4, 5),
        chunks=(3, 4, 5),
        shards=(3, 4, 5),
        dtype="int16",
        fill_value=-32768,
        config={"write_empty_chunks": True},
        compressors=[
            zarr.codecs.BloscCodec(cname="zstd", clevel=3, shuffle="shuffle", typesize=2),
            zarr.codecs.Crc32cCodec(),
        ],
    )
    array[:1] = 5
    shard = store[f"{PATH}/c/0/0/0"].to_bytes()  # type: ignore[attr-defined]  # a zarr Buffer
    layout = arrays.read_layout(objects[f"{PATH}/zarr.json"], PATH)
    with pytest.raises(StoreError, match="fill value"):
        arrays.decode_shard(shard, layout, PATH)


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("shape", [3, 4]),
        ("shape", ["3", 4, 5]),
        ("shape", [3.5, 4, 5]),
        ("shape", [-3, 4, 5]),
        ("shape", None),
        ("shape", [10**30, 4, 5]),
        ("data_type", ["int16"]),
        ("fill_value", True),
        ("shape", [3, 4, 1 << 40]),
        ("shape", [0, 4, 5]),
        ("shape", [3, 4, 6]),
        ("data_type", "float64"),
        ("fill_value", 0),
        ("codecs", [{"name": "bytes"}]),
    ],
)
def test_changed_metadata_is_named_damage(change: str, value: object) -> None:
    document = json.loads(arrays.create_array(PATH, voxels((3, 4, 5)), {})[f"{PATH}/zarr.json"])
    document[change] = value
    with pytest.raises(StoreError) as caught:
        arrays.read_layout(json.dumps(document).encode(), PATH)
    assert (caught.value.kind, caught.value.key) == ("metadata-damaged", PATH)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a": ' + b"[" * 100_000]
)
def test_metadata_that_is_no_json_object_is_named_damage(data: bytes) -> None:
    with pytest.raises(StoreError, match="metadata-damaged"):
        arrays.read_layout(data, PATH)
    with pytest.raises(StoreError, match="metadata-damaged"):
        crops.read_attributes(data, PATH)
