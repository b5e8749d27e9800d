"""Read and check the headers of compressed frames before a decoder is called.

The end marker must be present and the stated lengths of the parts must be consistent. Entropy-coded
data are not parsed.

Markers: JPEG ITU-T T.81 annex B, JPEG-LS T.87 annex C, JPEG 2000 T.800 annex A, RLE PS3.5 annex G.
"""

import struct
from dataclasses import dataclass

EOI = b"\xff\xd9"
"""End of image (EOI); JPEG 2000 uses the same code for end of codestream (EOC)."""

_SOI = b"\xff\xd8"
_SOC = b"\xff\x4f\xff\x51"
_JP2 = b"\0\0\0\x0cjP  \r\n\x87\n"
"""The signature box of the JP2 file format (T.800 I.5.1)."""
_SOT, _SOD = 0xFF90, 0xFF93
_FRAME_MARKERS = frozenset(range(0xFFC0, 0xFFD0)) - {0xFFC4, 0xFFC8, 0xFFCC} | {0xFFF7}
_BARE = frozenset({0xFF01, *range(0xFFD0, 0xFFD8)})
_SOS = 0xFFDA
_MAX_MARKERS = 1 << 12
_MAX_TILES = 1 << 10
_PADDING = 64
_word = struct.Struct(">H").unpack_from
_long = struct.Struct(">L").unpack_from


class CodestreamError(Exception):
    """A frame contradicts its header or itself; `kind` is a kind of SliceError."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class FrameForm:
    """Image parameters in the header of one compressed frame.

    Parameters
    ----------
    rows, columns, components : int
    precision : int
        Bits per sample.
    signed : bool
    process : int
        Low byte of the JPEG start-of-frame marker (0xC0 baseline, 0xC3 lossless, 0xF7 JPEG-LS); 0
        for other codings.
    """

    rows: int
    columns: int
    components: int
    precision: int
    signed: bool = False
    process: int = 0


def starts(piece: memoryview) -> bool:
    """Whether a fragment starts a JPEG, JPEG-LS or JPEG 2000 codestream."""
    return piece[:2] == _SOI or piece[:4] == _SOC or piece[:12] == _JP2


def ends(piece: memoryview) -> bool:
    """Whether a fragment ends a codestream; padding bytes 0x00 or 0xFF may follow."""
    return bytes(piece[-_PADDING:]).rstrip(b"\0\xff").endswith(EOI)


def unwrap_jp2(piece: memoryview) -> memoryview:
    """Return the codestream inside a JP2 file (T.800 I.4); return other data unchanged.

    DICOM requires the bare codestream (PS3.5 A.4.4), but some writers wrap it. A box starts with
    its length and its type, four bytes each. Length 1 means that the length is in the next eight
    bytes, length 0 that the box extends to the end of the file.
    """
    if piece[:12] != _JP2:
        return piece
    position = 0
    for _ in range(_MAX_MARKERS):
        if position + 16 > len(piece):
            break
        (length,) = _long(piece, position)
        head = 8
        if length == 1:
            head, length = 16, int.from_bytes(piece[position + 8 : position + 16], "big")
        if bytes(piece[position + 4 : position + 8]) == b"jp2c":
            return piece[position + head : position + length if length else len(piece)]
        if length < head:
            break
        position += length
    return piece


def read_jpeg(piece: memoryview) -> FrameForm:
    """Read the frame marker of a JPEG or JPEG-LS codestream.

    Raises
    ------
    CodestreamError
        ``codestream-mismatch`` or ``codestream-truncated``.
    """
    if piece[:2] != _SOI:
        raise CodestreamError("codestream-mismatch", "the frame begins with no SOI mark")
    _check_end(piece)
    position = 2
    try:
        for _ in range(_MAX_MARKERS):
            (marker,) = _word(piece, position)
            if marker == 0xFFFF:
                position += 1
                continue
            if marker in _BARE:
                position += 2
                continue
            if marker >> 8 != 0xFF or marker == _SOS:
                break
            (length,) = _word(piece, position + 2)
            if marker in _FRAME_MARKERS:
                precision, rows, columns, components = struct.unpack_from(
                    ">BHHB", piece, position + 4
                )
                return FrameForm(rows, columns, components, precision, process=marker & 0xFF)
            position += 2 + length
    except struct.error:
        pass
    raise CodestreamError("codestream-mismatch", "the frame has no frame header before its data")


def read_jpeg2000(piece: memoryview) -> FrameForm:
    """Read the SIZ marker of a JPEG 2000 or HTJ2K codestream and check its tile-part lengths.

    Raises
    ------
    CodestreamError
        ``codestream-mismatch`` or ``codestream-truncated``.
    """
    if piece[:4] != _SOC:
        raise CodestreamError("codestream-mismatch", "the frame begins with no SOC and SIZ marks")
    _check_end(piece)
    try:
        width, height, left, top, tile_width, tile_height = struct.unpack_from(">6L", piece, 8)
        components, depth, step_x, step_y = struct.unpack_from(">HBBB", piece, 40)
        _check_tile_parts(piece, 4 + _word(piece, 4)[0])
    except struct.error:
        raise CodestreamError("codestream-truncated", "the frame ends in its header") from None
    # Decoders allocate some kilobytes per tile before they read the first one.
    tiles = -(-width // max(1, tile_width)) * -(-height // max(1, tile_height))
    if tiles > _MAX_TILES:
        raise CodestreamError("codestream-mismatch", f"{tiles} tiles, not up to {_MAX_TILES}")
    if (step_x, step_y) != (1, 1):
        raise CodestreamError("codestream-mismatch", "the frame is subsampled")
    return FrameForm(
        height - top, width - left, components, (depth & 0x7F) + 1, signed=bool(depth & 0x80)
    )


def check_rle(piece: memoryview, segments: int) -> None:
    """Check the header of an RLE frame.

    Raises
    ------
    CodestreamError
        ``codestream-mismatch``, or ``codestream-truncated`` if a segment starts past the end.
    """
    if len(piece) < 64:
        raise CodestreamError("codestream-truncated", f"{len(piece)} bytes, the header has 64")
    count, *offsets = struct.unpack_from("<16L", piece)
    if count != segments:
        raise CodestreamError("codestream-mismatch", f"{count} RLE segments, not {segments}")
    used = offsets[:segments]
    if used[0] != 64 or used != sorted(set(used)):
        raise CodestreamError("codestream-mismatch", f"RLE segments begin at {used}")
    if used[-1] >= len(piece):
        raise CodestreamError("codestream-truncated", f"segment at {used[-1]} of {len(piece)}")


def _check_end(piece: memoryview) -> None:
    if not ends(piece):
        raise CodestreamError(
            "codestream-truncated", f"no end mark in the last of {len(piece)} bytes"
        )


def _check_tile_parts(piece: memoryview, position: int) -> None:
    """Check that the chain of tile-parts ends exactly at the end marker."""
    tail = bytes(piece[-_PADDING:])
    end = len(piece) - len(tail) + len(tail.rstrip(b"\0\xff")) - len(EOI)
    for _ in range(_MAX_MARKERS):
        if position == end:
            return
        (marker,) = _word(piece, position)
        if marker == _SOT:
            (length,) = _long(piece, position + 6)
            if length == 0:  # "until the end", allowed for the last tile-part
                return
            if length < 14:
                break
            position += length
        elif marker >> 8 == 0xFF and marker != _SOD:
            position += 2 + _word(piece, position + 2)[0]
        else:
            break
        if position > end:
            break
    raise CodestreamError("codestream-truncated", "the tile-parts do not lead to the end mark")
