"""Decode every frame of an object with a second decoder and compare bit by bit.

Compressed frames are decoded again by the last rung of the ladder that belongs to another library,
or by GDCM in a separate process; native frames by pydicom. All free decoders of JPEG 2000 and
JPEG-LS share a code base (OpenJPEG and CharLS), so for these the comparison tests the bindings and
the input bytes, not the algorithm.
"""

import io

import numpy as np
import pydicom
from numpy.typing import NDArray

from pipeline.dicom.decoders import LADDERS, Words, decode_frame, decode_with
from pipeline.dicom.headers import Header, read_header
from pipeline.dicom.limits import Limits
from pipeline.dicom.pixeldata import read_frames
from pipeline.dicom.precision import find_bits
from pipeline.dicom.syntaxes import NATIVE
from storage_schemas.errors import CspineError, SliceError, StoreError

GDCM = "gdcm"


def cross_check(key: str, data: bytes, limits: Limits | None = None) -> CspineError | None:
    """Decode an object with two decoders and compare the results.

    Parameters
    ----------
    key : str
        Key of the object, used in errors.
    data : bytes
        Content of an object that the pipeline has already read.
    limits : Limits, optional

    Returns
    -------
    CspineError or None
        ``decoders-disagree`` with both decoders and the number of differing pixels, or the error
        of either decoder; None if they agree.
    """
    limits = limits or Limits()
    try:
        header = read_header(key, data, limits)
        for frame, piece in enumerate(read_frames(header)):
            first, name = decode_frame(header, piece, limits)
            bits = find_bits(header, first, piece)
            second, other = _decode_again(header, data, frame, piece, name, limits, bits)
            mask = np.uint16((1 << bits) - 1)
            differing = int(np.count_nonzero((first ^ second) & mask))
            if differing:
                why = f"frame {frame}: {name} and {other} differ in {differing} pixels"
                return StoreError("decoders-disagree", why, key=key)
    except SliceError as error:
        return error
    return None


def _decode_again(
    header: Header,
    data: bytes,
    frame: int,
    piece: memoryview,
    name: str,
    limits: Limits,
    bits: int,
) -> tuple[NDArray[np.unsignedinteger], str]:
    if header.syntax in NATIVE:
        return _by_pydicom(data, frame), "pydicom"
    library = name.partition(".")[0]
    others = [rung for rung in LADDERS[header.syntax] if rung.partition(".")[0] != library]
    other = others[-1] if others else GDCM
    return decode_with(other, header, piece, limits, bits), other


def _by_pydicom(data: bytes, frame: int) -> Words:
    pixels = pydicom.dcmread(io.BytesIO(data)).pixel_array
    image = pixels[frame] if pixels.ndim == 3 else pixels
    return image.view(f"u{image.itemsize}").astype(f"u{image.itemsize}")
