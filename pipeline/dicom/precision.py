"""How many bits of the decoded words are the stored value.

BitsStored says so, and files in the world disagree with it: a lossy coding overshoots the range, a
codestream of 16 bits holds values that a header of 12 bits does not name. A value is never cut to
BitsStored where that would change it. Where the header and the words can be read in two ways, the
object is refused.

Bits above BitsStored in native pixel data are no part of the value (PS3.5 8.1.1: they held overlays
once); in a codestream they were encoded as a part of it, since the encoder was told a precision.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.dicom.decoders import read_form
from pipeline.dicom.headers import Header
from pipeline.dicom.hounsfield import find_padding, stored_range
from pipeline.dicom.syntaxes import NATIVE, SYNTAXES
from storage_schemas.errors import SliceError

Words = NDArray[np.unsignedinteger[Any]]


def find_bits(header: Header, words: Words, piece: memoryview) -> int:
    """The number of low bits that hold the stored value, the sign included.

    Parameters
    ----------
    header : Header
    words : ndarray, shape (rows, columns), uint8 or uint16
        As decoded.
    piece : memoryview
        The frame that they were decoded from.

    Returns
    -------
    int
        BitsStored, or more where the words hold values beyond it.

    Raises
    ------
    SliceError
        ``values-beyond-bits`` where native words hold more than BitsStored says, and
        ``codestream-mismatch`` where a codestream holds negative values under an unsigned header.
    """
    bits, signed = header.bits_stored, header.signed
    form = None if header.syntax in NATIVE else read_form(header, piece)
    if form is not None and form.signed:
        return _of_signed_stream(header, words)
    width = words.dtype.itemsize * 8
    if form is not None and form.precision:
        width = min(width, max(form.precision, bits))
    if width == bits:
        return bits
    inside = _unpadded(header, words)
    if inside.size == 0 or _fits(inside, bits, signed):
        return bits
    high = inside >> np.uint16(bits)
    if (high == high.flat[0]).all() and not (signed and form and SYNTAXES[header.syntax].lossy):
        return bits  # the same in every pixel: no part of the values
    if header.syntax not in NATIVE:
        return width
    if header.elements.values.get("overlay_bit", b"\0\0") != b"\0\0":
        return bits
    low, top = stored_range(bits, signed)
    why = f"words up to {int(inside.max())} where BitsStored {bits} holds {low} to {top}"
    raise SliceError("values-beyond-bits", why, key=header.key)


def _of_signed_stream(header: Header, words: Words) -> int:
    """JPEG 2000 says itself that its values are signed; the decoder has extended their sign."""
    width = words.dtype.itemsize * 8
    if header.signed or int(words.max()) < 1 << (width - 1):
        return width
    why = "negative values inside, PixelRepresentation 0 in the header"
    raise SliceError("codestream-mismatch", why, key=header.key)


def _unpadded(header: Header, words: Words) -> Words:
    """The words without padding that BitsStored cannot hold."""
    if header.padding is None:
        return words
    low, top = stored_range(header.bits_stored, header.signed)
    ends = [w - (1 << 16) if header.signed and w >> 15 else w for w in header.padding]
    if low <= min(ends) and max(ends) <= top:
        return words
    padded = find_padding(words, header.bits_stored, header.signed, header.padding)
    return words[~padded] if padded.any() else words


def _fits(words: Words, bits: int, signed: bool) -> bool:
    """Whether the words hold no more than `bits`, the sign extended over the others."""
    low, top = stored_range(bits, signed)
    if not signed:
        return int(words.max()) <= top
    values = words.view(np.int8 if words.dtype == np.uint8 else np.int16)
    return low <= int(values.min()) and int(values.max()) <= top
