"""Small objects that would need gigabytes of memory if their headers were trusted."""

import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests import made_dicom

JPEG_LOSSLESS, JPEG_2000 = "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.90"
SIDE, ZEROS = 40_000, 800 << 20
MAX_EXTRA_MIB = 64


def claim(piece: bytes, syntax: str, side: int) -> bytes:
    """Write other dimensions into a compressed frame."""
    if syntax == JPEG_2000:
        return piece[:8] + struct.pack(">2L", side, side) + piece[16:]
    frame = piece.index(b"\xff\xc3")
    return piece[: frame + 5] + struct.pack(">2H", side, side) + piece[frame + 9 :]


def make_claims(syntax: str, *, header: int, inside: int) -> list[bytes]:
    """Two slices of less than 6 kB with false dimensions in the header or the codestream."""
    piece = made_dicom.ENCODERS[syntax](made_dicom.smooth_image((56, 56)), 12)
    piece = claim(piece, syntax, inside)
    fields = {"BitsStored": 12, "Rows": header, "Columns": header}
    words = np.zeros((2, 56, 56), np.uint16)
    objects = made_dicom.make_stack(words, syntax, pieces=[piece], **fields)
    assert max(map(len, objects)) < 6_000
    return objects


def make_deflated(place: str) -> list[bytes]:
    """800 MB of zeros in 780 kB: as pixels, behind the pixels, or in an element before them."""
    claimed = {"Rows": 20_000, "Columns": 20_000} if place == "pixels" else {}
    data = made_dicom.make_dataset(np.zeros((2, 2), np.uint16), **claimed)
    data.add_new(0x00090010, "LO", "creator")
    data.add_new(0x00091010, "OB", b"\0\0")
    data.PixelData, data["PixelData"].VR = bytes(8), "OW"
    plain = made_dicom.write(data, made_dicom.EXPLICIT)
    size = struct.pack("<L", ZEROS)
    if place == "pixels":
        plain = plain[:-12] + size
    elif place == "before":
        plain = plain[: plain.index(b"\x09\x00\x10\x10OB\0\0") + 8] + size
    bomb = deflate(plain, ZEROS)
    assert len(bomb) < 1_000_000
    return [bomb]


def deflate(plain: bytes, zeros: int) -> bytes:
    """Deflate an explicit object, followed by zeros, and rename its transfer syntax."""
    end = 144 + struct.unpack_from("<L", plain, 140)[0]
    name = plain.index(b"\x02\x00\x10\x00UI") + 6
    (length,) = struct.unpack_from("<H", plain, name)
    uid = made_dicom.DEFLATED.encode()
    meta = plain[:name] + struct.pack("<H", len(uid)) + uid + plain[name + 2 + length : end]
    meta = meta[:140] + struct.pack("<L", len(meta) - 144) + meta[144:]
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    block = bytes(1 << 20)
    parts = [meta, packer.compress(plain[end:])]
    parts += [packer.compress(block) for _ in range(zeros >> 20)]
    return b"".join([*parts, packer.flush()])


BOMBS: dict[str, tuple[Callable[[], list[bytes]], str]] = {
    "JPEG 2000 of 40,000": (
        lambda: make_claims(JPEG_2000, header=SIDE, inside=SIDE),
        "size-over-budget",
    ),
    "JPEG Lossless of 40,000": (
        lambda: make_claims(JPEG_LOSSLESS, header=SIDE, inside=SIDE),
        "size-over-budget",
    ),
    "JPEG 2000 of 40,000 under a small header": (
        lambda: make_claims(JPEG_2000, header=56, inside=SIDE),
        "codestream-mismatch",
    ),
    "JPEG Lossless of 40,000 under a small header": (
        lambda: make_claims(JPEG_LOSSLESS, header=56, inside=SIDE),
        "codestream-mismatch",
    ),
    "JPEG Lossless within the budget": (
        lambda: make_claims(JPEG_LOSSLESS, header=4_000, inside=4_000),
        "codestream-truncated",
    ),
    "deflated pixels": (lambda: make_deflated("pixels"), "inflate-over-budget"),
    "deflated zeros behind the pixels": (lambda: make_deflated("behind"), "inflate-over-budget"),
    "deflated zeros before the pixels": (lambda: make_deflated("before"), "inflate-over-budget"),
}

CHILD = """
import json, resource, sys, time
from pipeline.dicom import decoders
from pipeline.dicom.volume import read_volume
from storage_schemas.errors import StudyError

def reached(*_):
    raise AssertionError("a decoder saw the bomb")

decoders.LADDERS = {syntax: {"decoder": reached} for syntax in decoders.LADDERS}
objects = [(path, open(path, "rb").read()) for path in sys.argv[1:]]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
try:
    read_volume(objects, threads=1)
except StudyError as error:
    kinds = sorted({e.kind for e in error.refused})
seconds = time.perf_counter() - start
extra = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
print(json.dumps({"kinds": kinds, "milliseconds": 1e3 * seconds, "extra_mib": extra}))
"""


@pytest.mark.parametrize("name", BOMBS)
def test_a_decompression_bomb_is_refused_without_memory_or_a_decoder(
    name: str, tmp_path: Path
) -> None:
    make, kind = BOMBS[name]
    paths = []
    for number, data in enumerate(make()):
        paths.append(tmp_path / str(number))
        paths[-1].write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, paths)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["kinds"] == [kind]
    assert result["extra_mib"] < MAX_EXTRA_MIB
