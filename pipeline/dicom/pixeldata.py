"""Split an object's pixel data into the bytes of each frame, with every length checked.

Nothing is decoded; `pipeline.dicom.codestreams` reads the headers of compressed frames.
"""

import struct

from pipeline.dicom.codestreams import ends, starts, unwrap_jp2
from pipeline.dicom.elements import UNDEFINED
from pipeline.dicom.headers import Header
from pipeline.dicom.limits import Limits
from pipeline.dicom.syntaxes import NATIVE, SYNTAXES
from storage_schemas.errors import SliceError

_MOST_PADDING = 1 << 16
_GREY = ("MONOCHROME1", "MONOCHROME2")
_ITEM, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE0DD
_item = struct.Struct("<HHL").unpack_from


def check_pixels(header: Header, limits: Limits) -> None:
    """Refuse pixel formats that are not those of a CT slice, and sizes over the budget.

    Raises
    ------
    SliceError
        ``syntax-unsupported``, ``pixel-format-unsupported`` or ``size-over-budget``.
    """
    key = header.key
    if header.syntax not in NATIVE and header.syntax not in SYNTAXES:
        raise SliceError("syntax-unsupported", f"transfer syntax {header.syntax}", key=key)
    if (
        header.samples != 1
        or header.photometric not in _GREY
        or header.bits_allocated not in (8, 16)
        or not 8 <= header.bits_stored <= header.bits_allocated
        or header.high_bit != header.bits_stored - 1
    ):
        why = (
            f"{header.samples} samples, {header.photometric}, {header.bits_allocated} bits"
            f" allocated, {header.bits_stored} stored, high bit {header.high_bit}"
        )
        raise SliceError("pixel-format-unsupported", why, key=key)
    pixels = header.rows * header.columns
    for count, budget in (
        (pixels, limits.frame_pixels),
        (pixels * header.frames, limits.object_pixels),
    ):
        if not 0 < count <= budget:
            size = f"{header.rows} x {header.columns} x {header.frames} pixels"
            raise SliceError("size-over-budget", f"{size} against {budget}", key=key)


def check_length(header: Header) -> None:
    """Refuse pixel data whose stated length contradicts the rest of the header.

    Raises
    ------
    SliceError
        ``length-mismatch``.
    """
    length = header.elements.pixel_length
    if header.syntax not in NATIVE:
        if length is not None:
            why = "compressed pixel data of defined length, not in fragments"
            raise SliceError("length-mismatch", why, key=header.key)
        return
    if length is None:
        raise SliceError("length-mismatch", "native pixel data of undefined length", key=header.key)
    need = _frame_bytes(header) * header.frames
    if length < need or length - need > _most_padding(header):
        raise SliceError("length-mismatch", f"{length} bytes, not {need}", key=header.key)
    start = header.elements.pixel_start or 0
    padding = bytes(header.elements.data[start + need : start + length])
    # One byte, of any value, makes the length even; more bytes are padding only if all 0 or 0xFF.
    if length > need + need % 2 and padding.strip(b"\0\xff"):
        why = f"{length} bytes, not {need}, and the others are no padding"
        raise SliceError("length-mismatch", why, key=header.key)


def _most_padding(header: Header) -> int:
    """Maximum number of bytes behind the last pixel, for writers that fill a block (PS3.5 8.1.1).

    Another frame would mean that NumberOfFrames is wrong, and many more rows that Rows is.
    """
    size, row = _frame_bytes(header), header.columns * (header.bits_allocated // 8)
    return max(1, row - 1, min(_MOST_PADDING, size // 10))


def _frame_bytes(header: Header) -> int:
    return header.rows * header.columns * (header.bits_allocated // 8)


def read_frames(header: Header) -> list[memoryview]:
    """Split the pixel data into frames; a frame that is contiguous is not copied.

    Call `check_pixels` first.

    Raises
    ------
    SliceError
        ``truncated`` or ``length-mismatch``.
    """
    check_length(header)
    if header.syntax in NATIVE:
        return _native_frames(header)
    return _encapsulated_frames(header)


def _native_frames(header: Header) -> list[memoryview]:
    elements = header.elements
    start, length = elements.pixel_start or 0, elements.pixel_length or 0
    size = _frame_bytes(header)
    need = size * header.frames
    if start + length > len(elements.data) or not elements.whole:
        found = max(0, len(elements.data) - start)
        raise SliceError("truncated", f"{found} of {length} bytes of pixels", key=header.key)
    view = memoryview(elements.data)[start : start + need]
    return [view[i * size : (i + 1) * size] for i in range(header.frames)]


def _encapsulated_frames(header: Header) -> list[memoryview]:
    table, fragments = _fragments(header)
    frames = _group(header, table, fragments)
    if len(frames) != header.frames:
        why = f"{len(fragments)} fragments make {len(frames)} frames, not {header.frames}"
        raise SliceError("length-mismatch", why, key=header.key)
    pieces = [f[0] if len(f) == 1 else memoryview(b"".join(f)) for f in frames]
    if SYNTAXES[header.syntax].coding != "jpeg2000":
        return pieces
    return [unwrap_jp2(piece) for piece in pieces]


def _fragments(header: Header) -> tuple[bytes, list[tuple[int, memoryview]]]:
    """Read the offset table, and the fragments with their offsets (PS3.5 A.4)."""
    view = memoryview(header.elements.data)
    position = header.elements.pixel_start or 0
    items: list[tuple[int, memoryview]] = []
    while position + 8 <= len(view):
        group, element, length = _item(view, position)
        tag = group << 16 | element
        if tag == _SEQUENCE_END:
            if not items:
                raise SliceError("length-mismatch", "no fragment", key=header.key)
            first = items[0][0] + 8 + len(items[0][1])
            return bytes(items[0][1]), [(at - first, piece) for at, piece in items[1:]]
        if tag != _ITEM or length == UNDEFINED:
            why = f"no item where fragment {len(items)} should begin"
            raise SliceError("length-mismatch", why, key=header.key)
        if position + 8 + length > len(view):
            break
        items.append((position, view[position + 8 : position + 8 + length]))
        position += 8 + length
    raise SliceError("truncated", f"the object ends within fragment {len(items)}", key=header.key)


def _group(
    header: Header, table: bytes, fragments: list[tuple[int, memoryview]]
) -> list[list[memoryview]]:
    """Group fragments by frame: one each, or by the offset table, or by their end markers."""
    pieces = [piece for _, piece in fragments]
    if not SYNTAXES[header.syntax].marked or len(pieces) == header.frames:
        return [[piece] for piece in pieces]
    if len(table) == 4 * header.frames:
        begin = set(struct.unpack(f"<{header.frames}L", table))
        if 0 in begin and begin <= {at for at, _ in fragments}:
            frames: list[list[memoryview]] = []
            for at, piece in fragments:
                # A second image in one frame would be lost, so it overrides the table.
                if at in begin or (starts(piece) and ends(frames[-1][-1])):
                    frames.append([])
                frames[-1].append(piece)
            return frames
    frames = []
    for piece in pieces:
        if not frames or (starts(piece) and ends(frames[-1][-1])):
            frames.append([])
        frames[-1].append(piece)
    return frames
