"""The vertebra array: how it is made, described, read back and proven.

One array is one shard object of Zarr v3 (``sharding_indexed``): slabs of whole slices of about
1 MiB, each Blosc-compressed and closed by its crc32c, then the index with its own crc32c. So every
byte of the object is under a checksum, and the fill value is one that no voxel can have: nothing
lost or changed can be read as a value. zarr-python describes an array; the shard is made and read
below, to the very bytes that zarr-python would write: without its copies, in one request an array,
and with the name of a chunk that is damaged.

Not here: where objects are kept (`storage_schemas.store`).
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import google_crc32c
import numpy as np
import zarr
from numcodecs import blosc
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.storage import MemoryStore

from storage_schemas.canonical import canonical_json
from storage_schemas.errors import StoreError
from storage_schemas.geometry import StackGeometry

SCHEMA = "cspine-crop/1"
AIR_HU = -1024
"""What padded voxels, which the scanner never measured, are set to."""
HU_RANGE = (-32767, 32767)
"""The Hounsfield units that an array can hold; -32768 is kept to mean "lost"."""
CHUNK_BYTES = 1 << 20
MAX_VOXELS = 1 << 31
"""No crop of a CT comes near; a metadata file that claims more is damaged."""

Dtype = Literal["int16", "uint8"]
Voxels = NDArray[np.int16] | NDArray[np.uint8]
_FILL: Mapping[str, int] = {"int16": -32768, "uint8": 255}
_AXES = ["z", "y", "x"]
_DAMAGED_INDEX = "shard index"


@dataclass(frozen=True)
class ArrayLayout:
    """What follows from an array's shape and dtype alone.

    Parameters
    ----------
    shape : tuple of int
        (z, y, x).
    dtype : {"int16", "uint8"}
        int16 for Hounsfield units, uint8 for a mask.
    """

    shape: tuple[int, int, int]
    dtype: Dtype

    def __post_init__(self) -> None:
        if min(self.shape) < 1 or self.shape[0] * self.shape[1] * self.shape[2] > MAX_VOXELS:
            raise ValueError(f"no array has the shape {self.shape}")

    @property
    def slab(self) -> int:
        """Slices in an inner chunk: as many as fill about 1 MiB, at least one."""
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
        """Shape of the shard: the array's, filled up to whole chunks."""
        return (self.slab * self.slabs, *self.shape[1:])


def create_array(path: str, data: Voxels, attributes: Mapping[str, Any]) -> dict[str, bytes]:
    """Make the objects of one array.

    Parameters
    ----------
    path : str
        Key of the array below ``volumes.zarr``.
    data : ndarray, shape (z, y, x), int16 or uint8
        Voxels; the dtype's fill value must not occur.
    attributes : mapping
        Plain JSON values.

    Returns
    -------
    dict of str to bytes
        ``<path>/zarr.json`` and ``<path>/c/0/0/0``.

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
        dimension_names=_AXES,
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
            raise ValueError(f"{path}: a voxel has the value that is kept to mean 'lost'")
        if len(slab) < layout.slab:
            rest = (layout.slab - len(slab), *layout.shape[1:])
            slab = np.concatenate([slab, np.full(rest, _FILL[layout.dtype], little)])
        packed = blosc.compress(slab, b"zstd", clevel=3, shuffle=blosc.SHUFFLE)
        chunks += [packed, _checksum(packed)]
    lengths = np.array(list(map(len, chunks)), "<u8").reshape(-1, 2).sum(1)
    index = np.column_stack([lengths.cumsum() - lengths, lengths]).astype("<u8").tobytes()
    return b"".join([*chunks, index, _checksum(index)])


def _holds_fill(slab: Voxels, layout: ArrayLayout) -> bool:
    # The fill value is the lowest int16 and the highest uint8; looking for an end is cheapest.
    return bool((slab.min() if layout.dtype == "int16" else slab.max()) == _FILL[layout.dtype])


def _checksum(body: bytes | memoryview) -> bytes:
    # The library takes no memoryview, but numpy's view of one; a copy would cost as much again.
    return int(google_crc32c.value(np.frombuffer(body, np.uint8))).to_bytes(4, "little")


def create_crop(
    path: str,
    hu: NDArray[np.int16],
    mask: NDArray[np.uint8] | None,
    geometry: StackGeometry,
    attributes: Mapping[str, Any],
) -> dict[str, bytes]:
    """Make the objects of one vertebra: an OME-Zarr image and, where known, its label.

    Parameters
    ----------
    path : str
        ``<study>/<level>``.
    hu : ndarray, shape (z, y, x), int16, HU
        The crop, native voxels.
    mask : ndarray, shape (z, y, x), uint8, or None
        1 inside the vertebra, 0 outside.
    geometry : StackGeometry
        Of the crop.
    attributes : mapping
        What else is known (see docs/data-format.md); plain JSON values by allow-list.
    """
    block = {"schema": SCHEMA, "geometry": geometry.to_json(), **attributes}
    objects = _group(path, {"ome": _multiscales(path, geometry), "cspine": block})
    objects |= create_array(f"{path}/0", hu, {})
    if mask is not None:
        labels = f"{path}/labels"
        image = {**_multiscales(f"{labels}/vertebra", geometry), "image-label": _IMAGE_LABEL}
        objects |= _group(labels, {"ome": {"version": "0.5", "labels": ["vertebra"]}})
        objects |= _group(f"{labels}/vertebra", {"ome": image})
        objects |= create_array(f"{labels}/vertebra/0", mask, {})
    return objects


def create_group(path: str, attributes: Mapping[str, Any]) -> dict[str, bytes]:
    """Make the object of a Zarr group, ``<path>/zarr.json``."""
    return _group(path, attributes)


def read_attributes(metadata: bytes, path: str) -> dict[str, Any]:
    """Read the attributes of a ``zarr.json``; StoreError ``metadata-damaged`` where it is none."""
    return cast(dict[str, Any], _parse_metadata(metadata, path).get("attributes", {}))


def read_layout(metadata: bytes, path: str) -> ArrayLayout:
    """Read and check a ``zarr.json`` against the one way in which this store writes arrays.

    Raises
    ------
    StoreError
        ``metadata-damaged`` where it is unreadable or describes any other layout.
    """
    document = _parse_metadata(metadata, path)
    try:
        z, y, x = (int(n) for n in document["shape"])
        layout = ArrayLayout((z, y, x), document["data_type"])
        expected = {
            "fill_value": _FILL[layout.dtype],
            "chunk_grid": _named("regular", chunk_shape=list(layout.shard_shape)),
            "codecs": _codecs(layout),
        }
        found = {name: document[name] for name in expected}
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(
            "metadata-damaged", f"no array of this store is described so ({error})", key=path
        ) from None
    for name, value in expected.items():
        if found[name] != value:
            raise StoreError(
                "metadata-damaged", f"{name} is {found[name]}, expected {value}", key=path
            )
    return layout


def decode_shard(shard: bytes, layout: ArrayLayout, path: str) -> Voxels:
    """Decode a whole shard, every chunk under its checksum.

    Parameters
    ----------
    shard : bytes
        The object ``<path>/c/0/0/0``.
    layout : ArrayLayout
        From `read_layout`.
    path : str
        Key of the array, for errors.

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
        # The last chunk is stored whole, and may reach beyond the array.
        whole = len(place) == layout.slab
        slab = place if whole else np.empty(layout.chunk_shape, layout.dtype)
        found = _decompress(chunk, slab, layout, number, path)
        if not whole:
            place[:] = found
    return decoded


def decode_slabs(shard: bytes, layout: ArrayLayout, path: str) -> Iterator[Voxels]:
    """Decode a shard chunk by chunk, for one who has no need of the whole at once.

    Yields
    ------
    ndarray, shape (slices, y, x), int16 or uint8
        z ascending; each is written over the one before.

    Raises
    ------
    StoreError
        As `decode_shard`.
    """
    buffer = np.empty(layout.chunk_shape, layout.dtype)
    for number, chunk in enumerate(_chunks(shard, layout, path)):
        yield _decompress(chunk, buffer, layout, number, path)


def _chunks(shard: bytes, layout: ArrayLayout, path: str) -> Iterator[memoryview]:
    """The compressed chunks of a shard, z ascending, each under its checksum."""
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
    """Decompress a chunk into a slab; returns the part of it that belongs to the array."""
    # The Blosc header states the decompressed size at byte 4; never trust it with memory.
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
    """Whether the last four bytes are the crc32c of those before."""
    return _checksum(closed[:-4]) == closed[-4:]


def _layout_of(data: Voxels) -> ArrayLayout:
    if data.ndim != 3 or data.dtype.name not in _FILL:
        raise ValueError(f"an array is int16 or uint8 (z, y, x), not {data.dtype} {data.shape}")
    z, y, x = data.shape
    return ArrayLayout((z, y, x), cast(Dtype, data.dtype.name))


def _named(name: str, **configuration: Any) -> dict[str, Any]:
    return {"name": name, "configuration": configuration}


def _codecs(layout: ArrayLayout) -> list[dict[str, Any]]:
    """The codec pipeline as it stands in ``zarr.json``."""
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


def _parse_metadata(metadata: bytes, path: str) -> dict[str, Any]:
    try:
        document = json.loads(metadata)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise StoreError("metadata-damaged", "zarr.json is no JSON object", key=path)
    return document


def _multiscales(name: str, geometry: StackGeometry) -> dict[str, Any]:
    axes = [{"name": axis, "type": "space", "unit": "millimeter"} for axis in _AXES]
    level = {"path": "0", "coordinateTransformations": geometry.ome_transforms()}
    return {"version": "0.5", "multiscales": [{"name": name, "axes": axes, "datasets": [level]}]}


_IMAGE_LABEL = {
    "colors": [{"label-value": 1, "rgba": [230, 159, 0, 128]}],
    "source": {"image": "../../"},
}


def _group(path: str, attributes: Mapping[str, Any]) -> dict[str, bytes]:
    document = {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}
    return {f"{path}/zarr.json".lstrip("/"): canonical_json(document)}


def _objects_below(stored: Mapping[str, Any], path: str) -> dict[str, bytes]:
    """The array's own objects; zarr-python adds empty groups above, which others write."""
    return {
        key: buffer.to_bytes()
        for key, buffer in sorted(stored.items())
        if key.startswith(f"{path}/")
    }
