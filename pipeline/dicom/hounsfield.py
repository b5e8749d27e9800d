"""Convert stored words to Hounsfield units exactly: mask, sign, padding, rescale.

HU = stored value x slope + intercept, integers only (PS3.3 C.11.1.1.2). Padding is found in stored
values, before the rescale (PS3.3 C.7.5.1.1.2). MONOCHROME1 is not inverted: Hounsfield units do not
depend on the display. Slices that cannot be converted exactly are refused.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage_schemas.arrays import AIR_HU, HU_RANGE
from storage_schemas.errors import SliceError

Words = NDArray[np.unsignedinteger[Any]]
_LARGEST_WORD = 32767 + 1024
Values = NDArray[np.integer[Any]]


def check_rescale(key: str, slope: float, intercept: float) -> tuple[int, int]:
    """Return slope and intercept as integers.

    Decimal strings are rounded, so a slope of 0.999999999 is 1. A difference from an integer is
    accepted as rounding if slope and intercept together change no 16-bit value by half a unit.

    Raises
    ------
    SliceError
        ``rescale-invalid`` if either is no integer, or the slope is not positive.
    """
    whole = (round(slope), round(intercept))
    error = abs(slope - whole[0]) * _LARGEST_WORD + abs(intercept - whole[1])
    if error >= 0.5 or not 1 <= whole[0] <= 1 << 15 or abs(whole[1]) >= 1 << 32:
        why = f"slope {slope!r}, intercept {intercept!r}"
        raise SliceError("rescale-invalid", why, key=key)
    return whole


def write_hounsfield(
    words: Words,
    out: NDArray[np.int16],
    *,
    key: str,
    bits_stored: int,
    signed: bool,
    rescale: tuple[int, int],
    padding: tuple[int, int] | None,
) -> None:
    """Convert the stored words of one slice to Hounsfield units.

    Parameters
    ----------
    words : ndarray, shape (rows, columns), uint8 or uint16
        Decoded words, with arbitrary unused high bits. May share memory with `out`.
    out : ndarray, shape (rows, columns), int16
        Output in Hounsfield units; undefined if an error is raised.
    key : str
        Key of the object, used in errors.
    bits_stored : int
        Bits per stored value, 8 to 16.
    signed : bool
        Whether the highest stored bit is the sign.
    rescale : (int, int)
        Slope and intercept.
    padding : (int, int) or None
        First and last padding value as 16-bit words; None to disable masking.

    Raises
    ------
    SliceError
        ``hu-out-of-range`` if a voxel that is no padding is outside -32767 to 32767.
    """
    padded = None if padding is None else find_padding(words, bits_stored, signed, padding)
    # `out` holds intermediate values if possible: another buffer would cost as much time as the
    # arithmetic.
    values = to_stored_values(words, bits_stored, signed, out.view(np.uint16))
    slope, intercept = rescale
    bounds = stored_range(bits_stored, signed)
    if not _fits(bounds, slope, intercept):
        bounds = _measured_range(values, padded)
        if not _fits(bounds, slope, intercept):
            low, high = (value * slope + intercept for value in bounds)
            raise SliceError("hu-out-of-range", f"{low} to {high} HU against {HU_RANGE}", key=key)
    # Sums and products wrap around in 16 bits, so a result that fits is exact.
    words16 = values.astype(np.uint16) if values.dtype == np.uint8 else values.view(np.uint16)
    target = out.view(np.uint16)
    if slope != 1:
        words16 = np.multiply(words16, np.uint16(slope), out=target)
    np.add(words16, np.uint16(intercept & 0xFFFF), out=target)
    if padded is not None:
        np.copyto(out, AIR_HU, where=padded)


def to_stored_values(
    words: Words, bits_stored: int, signed: bool, out: Words | None = None
) -> Values:
    """Mask words to `bits_stored` and extend the sign.

    Parameters
    ----------
    words : ndarray, uint8 or uint16
    bits_stored : int
    signed : bool
    out : ndarray, uint16, optional
        Buffer of the same shape for the result of 16-bit words; may be `words` itself.

    Returns
    -------
    ndarray
        Values as uint8, uint16 or int16, of the same shape; `words` itself if nothing changes.
    """
    if out is not None and words.dtype != np.uint16:
        out = None
    if signed:
        wide = words.astype(np.uint16, copy=False)
        if bits_stored == 16:
            return wide.view(np.int16)
        shift = 16 - bits_stored
        high = np.left_shift(wide, shift, out=out).view(np.int16)
        return np.right_shift(high, shift, out=high)
    if bits_stored == words.dtype.itemsize * 8:
        return words
    return np.bitwise_and(words, words.dtype.type((1 << bits_stored) - 1), out=out)


def stored_range(bits_stored: int, signed: bool) -> tuple[int, int]:
    """Minimum and maximum value of an integer with `bits_stored` bits."""
    if signed:
        return -(1 << (bits_stored - 1)), (1 << (bits_stored - 1)) - 1
    return 0, (1 << bits_stored) - 1


def find_padding(
    words: Words, bits_stored: int, signed: bool, padding: tuple[int, int]
) -> NDArray[np.bool_]:
    """Find padded pixels.

    A padding value that does not fit into `bits_stored` is compared with whole words, including
    the unused bits; one that fits is compared with the stored values.
    """
    low, high = (_as_value(word, 16, signed) for word in padding)
    low, high = min(low, high), max(low, high)
    least, greatest = stored_range(bits_stored, signed)
    if least <= low and high <= greatest:
        values = to_stored_values(words, bits_stored, signed)
    else:
        values = to_stored_values(words, words.dtype.itemsize * 8, signed)
    if low == high:
        return np.equal(values, low)
    return (values >= low) & (values <= high)


def _as_value(word: int, bits: int, signed: bool) -> int:
    return word - (1 << bits) if signed and word >> (bits - 1) & 1 else word


def _fits(bounds: tuple[int, int], slope: int, intercept: int) -> bool:
    low, high = (value * slope + intercept for value in bounds)
    return HU_RANGE[0] <= low and high <= HU_RANGE[1]


def _measured_range(values: Values, padded: NDArray[np.bool_] | None) -> tuple[int, int]:
    low, high = int(values.min()), int(values.max())
    if padded is not None and padded.any():
        inside = values[~padded]
        if inside.size == 0:
            return 0, 0
        low, high = int(inside.min()), int(inside.max())
    return low, high
