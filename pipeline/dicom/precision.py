"""Find the number of bits of the decoded words that hold the stored value.

BitsStored should be that number, but files contradict it: lossy coding overshoots the range, and a
16-bit codestream may hold more than the 12 bits of its header. Values are never truncated to
BitsStored if that would change them. If header and words are ambiguous, the object is refused.

In native pixel data, bits above BitsStored are not part of the value (PS3.5 8.1.1; overlays once
used them). In a codestream they are, since the encoder was given a precision.
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
    """Return the number of low bits that hold the stored value, including the sign.

    Parameters
    ----------
    header : Header
    words : ndarray, shape (rows, columns), uint8 or uint16
        Decoded words of the frame.
    piece : memoryview
        Encoded bytes of the frame.

    Returns
    -------
    int
        BitsStored, or more if the words hold larger values.

    Raises
    ------
    SliceError
        ``values-beyond-bits`` if native words exceed BitsStored, and ``codestream-mismatch`` if a
        codestream holds negative values but the header is unsigned.
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
        return bits  # equal in all pixels, so not part of the values
    if header.syntax not in NATIVE:
        return width
    if header.elements.values.get("overlay_bit", b"\0\0") != b"\0\0":
        return bits
    low, top = stored_range(bits, signed)
    why = f"words up to {int(inside.max())} where BitsStored {bits} holds {low} to {top}"
    raise SliceError("values-beyond-bits", why, key=header.key)


def _of_signed_stream(header: Header, words: Words) -> int:
    """Bits of a signed JPEG 2000 codestream, whose sign the decoder has extended."""
    width = words.dtype.itemsize * 8
    if header.signed or int(words.max()) < 1 << (width - 1):
        return width
    why = "negative values inside, PixelRepresentation 0 in the header"
    raise SliceError("codestream-mismatch", why, key=header.key)


def _unpadded(header: Header, words: Words) -> Words:
    """Words without padding, if the padding value exceeds BitsStored."""
    if header.padding is None:
        return words
    low, top = stored_range(header.bits_stored, header.signed)
    ends = [w - (1 << 16) if header.signed and w >> 15 else w for w in header.padding]
    if low <= min(ends) and max(ends) <= top:
        return words
    padded = find_padding(words, header.bits_stored, header.signed, header.padding)
    return words[~padded] if padded.any() else words


def _fits(words: Words, bits: int, signed: bool) -> bool:
    """Whether the words fit into `bits` bits, with the sign extended to the others."""
    low, top = stored_range(bits, signed)
    if not signed:
        return int(words.max()) <= top
    values = words.view(np.int8 if words.dtype == np.uint8 else np.int16)
    return low <= int(values.min()) and int(values.max()) <= top
