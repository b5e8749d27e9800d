"""Decompress gzip files, including those of several members, with a size limit.

A gzip file may have several members (RFC 1952, 2.2): bgzip writes one for each 64 kB. Bytes after
the last member are ignored, as by gzip. Not here: parsing (`pipeline.vertebrae.nifti`).
"""

import zlib
from collections.abc import Iterator

import imagecodecs
import numpy as np

_MAGIC = b"\x1f\x8b"
_START = 1 << 12
"""Number of bytes that contain the header of a NIfTI file."""
_STEP = 1 << 20
_INPUT = 1 << 16
MAX_EXCESS = 1 << 24
"""Maximum number of bytes after the requested ones, which are checked and dropped."""


def read_start(data: bytes) -> bytes:
    """Return the first bytes of a file, decompressed if it is gzipped.

    Parameters
    ----------
    data : bytes
        Content of the file.

    Raises
    ------
    ValueError
        Where the gzip stream is damaged.
    """
    if not data.startswith(_MAGIC):
        return data[:_START]
    found = b""
    for piece in _pieces(data, _START):
        found += piece
        if len(found) >= _START:
            break
    return found[:_START]


def read_all(data: bytes, size: int) -> bytes | memoryview:
    """Return the first `size` bytes of a file, decompressed if it is gzipped.

    Parameters
    ----------
    data : bytes
        Content of the file; without gzip, it is returned unchanged.
    size : int
        Number of bytes according to the header; no more are allocated.

    Returns
    -------
    bytes or memoryview
        `size` bytes, or fewer where the file ends earlier.

    Raises
    ------
    ValueError
        Where the gzip stream is damaged, or exceeds `size` by more than `MAX_EXCESS` bytes.
    """
    if not data.startswith(_MAGIC):
        return data
    if int.from_bytes(data[-4:], "little") == size:  # RFC 1952, 2.3.1: the size of the last member
        # libdeflate needs a third of the time of zlib, and no copy.
        inflated = np.empty(size, np.uint8)
        try:
            if len(imagecodecs.gzip_decode(data, out=inflated.data)) == size:
                return inflated.data
        except imagecodecs.GzipError:
            pass  # several members or damage, which zlib distinguishes
    found, excess = bytearray(), 0
    for piece in _pieces(data, _STEP):
        wanted = size - len(found)
        found += piece[:wanted]
        excess += max(0, len(piece) - wanted)
        if excess > MAX_EXCESS:
            raise ValueError(
                f"the gzip stream holds over {MAX_EXCESS} bytes more than its header states"
            )
    return memoryview(found)


def _pieces(data: bytes, step: int) -> Iterator[bytes]:
    """Yield the decompressed bytes in pieces of at most `step`; all checksums are verified."""
    at = 0
    while data.startswith(_MAGIC, at):
        stream = zlib.decompressobj(wbits=31)
        while not stream.eof:
            given = data[at : at + _INPUT]
            try:
                piece = stream.decompress(given, step)
            except zlib.error:
                raise ValueError("the gzip stream is damaged") from None
            at += len(given) - len(stream.unconsumed_tail) - len(stream.unused_data)
            if not (piece or given or stream.eof):
                raise ValueError("the gzip stream is cut")
            yield piece
        while data.startswith(b"\0", at):  # padding between members
            at += 1
