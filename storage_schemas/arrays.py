"""Arrays of the store: one Zarr v3 array is one shard object.

A shard (``sharding_indexed``) holds inner chunks of whole slices, about 1 MiB each, which are
Blosc-compressed and followed by their crc32c, then the index with its crc32c. Every byte is under a
checksum, and the fill value is one that no voxel has, so data that are lost or changed are never
read as values.

zarr-python writes the metadata. Shards are written and read here, byte for byte as zarr-python
writes them, because that saves copies, needs one request for each array, and can name the chunk
that is damaged.

Not here: groups and their attributes (`storage_schemas.crops`), keys and requests
(`storage_schemas.store`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import google_crc32c
import msgspec
import numpy as np
import zarr
from numcodecs import blosc
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.storage import MemoryStore

from storage_schemas.errors import StoreError
from storage_schemas.parsing.strict_json import Side, decode

AIR_HU = -1024
"""HU of padding, which the scanner did not measure."""
HU_RANGE = (-32767, 32767)
"""Range of HU that an array can hold; -32768 is the fill value, which no voxel may have."""
CHUNK_BYTES = 1 << 20
"""Most bytes of an inner chunk before compression, unless a single slice has more."""
MAX_VOXELS = 1 << 31
"""Most voxels of an array; no CT has as many, so metadata that claim more are damaged."""

Dtype = Literal["int16", "uint8"]
Voxels = NDArray[np.int16] | NDArray[np.uint8]
_FILL: Mapping[str, int] = {"int16": -32768, "uint8": 255}
AXES = ("z", "y", "x")
"""Names of the dimensions of every array."""
_DAMAGED_INDEX = "shard index"


@dataclass(frozen=True)
class ArrayLayout:
    """Chunks and shard of an array, which follow from its shape and dtype.

    Parameters
    ----------
    shape : tuple of int
        Number of voxels along (z, y, x).
    dtype : {"int16", "uint8"}
        int16 for Hounsfield units, uint8 for a mask.

    Raises
    ------
    ValueError
        Where a side is below 1, or the array has more than `MAX_VOXELS`.
    """

    shape: tuple[int, int, int]
    dtype: Dtype

    def __post_init__(self) -> None:
        if min(self.shape) < 1 or self.shape[0] * self.shape[1] * self.shape[2] > MAX_VOXELS:
            raise ValueError(f"no array has the shape {self.shape}")

    @property
    def slab(self) -> int:
        """Number of slices in an inner chunk: as many as fit in `CHUNK_BYTES`, at least one."""
        itemsize = np.dtype(self.dtype).itemsize
        fitting = CHUNK_BYTES // (self.shape[1] * self.shape[2] * itemsize)
        return min(self.shape[0], max(1, fitting))

    @property
    def slabs(self) -> int:
        """Number of inner chunks in the shard."""
        return -(-self.shape[0] // self.slab)

    @property
    def chunk_shape(self) -> tuple[int, int, int]:
        """Shape of an inner chunk."""
        return (self.slab, *self.shape[1:])

    @property
    def shard_shape(self) -> tuple[int, int, int]:
        """Shape of the shard: that of the array, rounded up to whole chunks."""
        return (self.slab * self.slabs, *self.shape[1:])


class _ArrayNode(msgspec.Struct):
    """A ``zarr.json`` of an array."""

    shape: tuple[Side, Side, Side]
    data_type: Dtype
    fill_value: int
    chunk_grid: Any
    codecs: Any


def create_array(path: str, data: Voxels, attributes: Mapping[str, Any]) -> dict[str, bytes]:
    """Encode one array.

    Parameters
    ----------
    path : str
        Key of the array below ``volumes.zarr``.
    data : ndarray, shape (z, y, x), int16 or uint8
        Voxels; the dtype's fill value must not occur.
    attributes : mapping
        Attributes of the array, plain JSON values.

    Returns
    -------
    dict of str to bytes
        The objects ``<path>/zarr.json`` and ``<path>/c/0/0/0``.

    Raises
    ------
    ValueError
        Where the data hold the fill value or are no three-dimensional int16 or uint8.
    """
    layout = _layout_of(data)
    shard = _encode_shard(data, layout, path)
    stored: dict[str, Any] = {}
    zarr.create_array(
        MemoryStore(stored),
        name=path,
        shape=layout.shape,
        dtype=layout.dtype,
        chunks=layout.chunk_shape,
        shards=layout.shard_shape,
        compressors=[
            BloscCodec(
                cname="zstd",
                clevel=3,
                shuffle="shuffle",
                typesize=np.dtype(layout.dtype).itemsize,
            ),
            Crc32cCodec(),
        ],
        fill_value=_FILL[layout.dtype],
        dimension_names=list(AXES),
        attributes=dict(attributes),
        config={"write_empty_chunks": True},
    )
    return _objects_below(stored, path) | {f"{path}/c/0/0/0": shard}


def _encode_shard(data: Voxels, layout: ArrayLayout, path: str) -> bytes:
    little = np.dtype(layout.dtype).newbyteorder("<")
    chunks: list[bytes] = []
    for start in range(0, layout.shape[0], layout.slab):
        slab = np.ascontiguousarray(data[start : start + layout.slab], little)
        if _holds_fill(slab, layout):
            raise ValueError(f"{path}: a voxel has the fill value")
        if len(slab) < layout.slab:
            rest = (layout.slab - len(slab), *layout.shape[1:])
            slab = np.concatenate([slab, np.full(rest, _FILL[layout.dtype], little)])
        packed = blosc.compress(slab, b"zstd", clevel=3, shuffle=blosc.SHUFFLE)
        chunks += [packed, _checksum(packed)]
    lengths = np.array(list(map(len, chunks)), "<u8").reshape(-1, 2).sum(1)
    index = np.column_stack([lengths.cumsum() - lengths, lengths]).astype("<u8").tobytes()
    return b"".join([*chunks, index, _checksum(index)])


def _holds_fill(slab: Voxels, layout: ArrayLayout) -> bool:
    # The fill value is the lowest int16 and the highest uint8; a minimum or maximum is fastest.
    return bool((slab.min() if layout.dtype == "int16" else slab.max()) == _FILL[layout.dtype])


def _checksum(body: bytes | memoryview) -> bytes:
    # The library takes a numpy view, but no memoryview; a copy would double the time.
    return int(google_crc32c.value(np.frombuffer(body, np.uint8))).to_bytes(4, "little")


def read_layout(metadata: bytes, path: str) -> ArrayLayout:
    """Read the layout of an array, and check that it is the one that this store writes.

    Parameters
    ----------
    metadata : bytes
        Content of its ``zarr.json``.
    path : str
        Key of the object, for the message.

    Raises
    ------
    StoreError
        ``metadata-damaged`` where it is unreadable or describes any other layout.
    """
    try:
        found = decode(metadata, _ArrayNode)
        layout = ArrayLayout(found.shape, found.data_type)
    except ValueError as error:
        raise StoreError("metadata-damaged", f"zarr.json: {error}", key=path) from None
    for name, expected in (
        ("fill_value", _FILL[layout.dtype]),
        ("chunk_grid", _named("regular", chunk_shape=list(layout.shard_shape))),
        ("codecs", _codecs(layout)),
    ):
        if (value := getattr(found, name)) != expected:
            raise StoreError(
                "metadata-damaged", f"{name} is {value}, expected {expected}", key=path
            )
    return layout


def decode_shard(shard: bytes, layout: ArrayLayout, path: str) -> Voxels:
    """Decode a shard, and check every checksum.

    Parameters
    ----------
    shard : bytes
        Content of the object ``<path>/c/0/0/0``.
    layout : ArrayLayout
        Layout of the array, from `read_layout`.
    path : str
        Key of the array, for the message.

    Returns
    -------
    ndarray, shape (z, y, x), int16 or uint8

    Raises
    ------
    StoreError
        ``array-damaged``, naming the array and the chunk.
    """
    decoded = np.empty(layout.shape, layout.dtype)
    for number, chunk in enumerate(_chunks(shard, layout, path)):
        place = decoded[number * layout.slab : (number + 1) * layout.slab]
        # The last chunk is stored at full size and may extend beyond the array.
        whole = len(place) == layout.slab
        slab = place if whole else np.empty(layout.chunk_shape, layout.dtype)
        found = _decompress(chunk, slab, layout, number, path)
        if not whole:
            place[:] = found
    return decoded


def decode_slabs(shard: bytes, layout: ArrayLayout, path: str) -> Iterator[Voxels]:
    """Decode a shard chunk by chunk.

    Parameters
    ----------
    shard : bytes
        Content of the object ``<path>/c/0/0/0``.
    layout : ArrayLayout
        Layout of the array, from `read_layout`.
    path : str
        Key of the array, for the message.

    Yields
    ------
    ndarray, shape (slices, y, x), int16 or uint8
        Slices of the next chunk, z ascending. All chunks share one buffer: the next one overwrites
        this one.

    Raises
    ------
    StoreError
        As `decode_shard`.
    """
    buffer = np.empty(layout.chunk_shape, layout.dtype)
    for number, chunk in enumerate(_chunks(shard, layout, path)):
        yield _decompress(chunk, buffer, layout, number, path)


def _chunks(shard: bytes, layout: ArrayLayout, path: str) -> Iterator[memoryview]:
    """Yield the compressed chunks of a shard, z ascending, after a check of their checksums."""
    index_bytes = 16 * layout.slabs
    if len(shard) < index_bytes + 4 or not _checksum_holds(shard[-index_bytes - 4 :]):
        raise _damaged(path, _DAMAGED_INDEX)
    index = np.frombuffer(shard, "<u8", 2 * layout.slabs, len(shard) - index_bytes - 4)
    view = memoryview(shard)
    for number, (offset, length) in enumerate(index.reshape(-1, 2).tolist()):
        if offset + length > len(shard) - index_bytes - 4 or length < 4 + 16:
            raise _damaged(path, f"chunk {number}/0/0")
        chunk = view[offset : offset + length]
        if not _checksum_holds(chunk):
            raise _damaged(path, f"chunk {number}/0/0")
        yield chunk[:-4]


def _decompress(
    chunk: memoryview, slab: Voxels, layout: ArrayLayout, number: int, path: str
) -> Voxels:
    """Decompress a chunk into a slab, and return the part of it that belongs to the array."""
    # Byte 4 of the Blosc header begins the decompressed size; check it before any memory is used.
    if int.from_bytes(chunk[4:8], "little") != slab.nbytes:
        raise _damaged(path, f"chunk {number}/0/0")
    blosc.decompress(chunk, slab)
    found = slab[: layout.shape[0] - number * layout.slab]
    if _holds_fill(found, layout):
        raise _damaged(path, f"chunk {number}/0/0, a voxel of the fill value,")
    return found


def _damaged(path: str, part: str) -> StoreError:
    return StoreError("array-damaged", f"checksum or length of {part} does not hold", key=path)


def _checksum_holds(closed: bytes | memoryview) -> bool:
    """Return whether the last four bytes are the crc32c of all others."""
    return _checksum(closed[:-4]) == closed[-4:]


def _layout_of(data: Voxels) -> ArrayLayout:
    if data.ndim != 3 or data.dtype.name not in _FILL:
        raise ValueError(f"an array is int16 or uint8 (z, y, x), not {data.dtype} {data.shape}")
    z, y, x = data.shape
    return ArrayLayout((z, y, x), cast(Dtype, data.dtype.name))


def _named(name: str, **configuration: Any) -> dict[str, Any]:
    return {"name": name, "configuration": configuration}


def _codecs(layout: ArrayLayout) -> list[dict[str, Any]]:
    """Return the codec pipeline as ``zarr.json`` has it."""
    itemsize = np.dtype(layout.dtype).itemsize
    to_bytes = _named("bytes", endian="little") if itemsize > 1 else {"name": "bytes"}
    index_to_bytes = _named("bytes", endian="little")
    checksum = {"name": "crc32c"}
    compressed = _named(
        "blosc", typesize=itemsize, cname="zstd", clevel=3, shuffle="shuffle", blocksize=0
    )
    return [
        _named(
            "sharding_indexed",
            chunk_shape=list(layout.chunk_shape),
            codecs=[to_bytes, compressed, checksum],
            index_codecs=[index_to_bytes, checksum],
            index_location="end",
        )
    ]


def _objects_below(stored: Mapping[str, Any], path: str) -> dict[str, bytes]:
    """Return the array's objects, without the groups above it that zarr-python adds."""
    return {
        key: buffer.to_bytes()
        for key, buffer in sorted(stored.items())
        if key.startswith(f"{path}/")
    }
