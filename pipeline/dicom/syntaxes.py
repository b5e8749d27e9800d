"""Supported transfer syntaxes (DICOM PS3.5 annex A), with one entry per compressed syntax.

An entry describes the coding of the frames, which are checked before they are decoded. The decoders
are in `pipeline.dicom.decoders.LADDERS`. Compressed syntaxes without an entry are refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass

EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
NATIVE = frozenset({IMPLICIT_LITTLE, EXPLICIT_LITTLE, EXPLICIT_BIG, DEFLATED})
"""Syntaxes whose pixels are not compressed frame by frame."""

RLE = "1.2.840.10008.1.2.5"
_JPEG = "1.2.840.10008.1.2.4."
JPEG_BASELINE, JPEG_EXTENDED = _JPEG + "50", _JPEG + "51"
JPEG_LOSSLESS, JPEG_LOSSLESS_SV1 = _JPEG + "57", _JPEG + "70"
JPEG_LS, JPEG_LS_NEAR = _JPEG + "80", _JPEG + "81"
JPEG_2000_LOSSLESS, JPEG_2000 = _JPEG + "90", _JPEG + "91"
HTJ2K_LOSSLESS, HTJ2K_RPCL, HTJ2K = _JPEG + "201", _JPEG + "202", _JPEG + "203"

LOSSLESS_PROCESS = 0xC3


@dataclass(frozen=True)
class Syntax:
    """Coding of the frames of a compressed transfer syntax.

    Parameters
    ----------
    coding : str
        Name of the coding, a key of `pipeline.dicom.decoders.CODINGS`.
    processes : tuple of int
        Allowed codes of the start-of-frame marker of a JPEG frame (ITU-T T.81 table B.1); empty
        if any is allowed, or if frames have no such marker.
    lossy : bool
        Whether decoded values may exceed the range of the encoded values.
    marked : bool
        Whether frames start and end with markers, by which fragments are joined; otherwise each
        frame is one fragment.
    """

    coding: str
    processes: tuple[int, ...] = ()
    lossy: bool = False
    marked: bool = True


SYNTAXES: Mapping[str, Syntax] = {
    RLE: Syntax("rle", marked=False),
    JPEG_BASELINE: Syntax("jpeg", (0xC0,), lossy=True),
    JPEG_EXTENDED: Syntax("jpeg", (0xC0, 0xC1), lossy=True),
    JPEG_LOSSLESS: Syntax("jpeg", (LOSSLESS_PROCESS,)),
    JPEG_LOSSLESS_SV1: Syntax("jpeg", (LOSSLESS_PROCESS,)),
    JPEG_LS: Syntax("jpeg", (0xF7,)),
    JPEG_LS_NEAR: Syntax("jpeg", (0xF7,), lossy=True),
    JPEG_2000_LOSSLESS: Syntax("jpeg2000"),
    JPEG_2000: Syntax("jpeg2000", lossy=True),
    HTJ2K_LOSSLESS: Syntax("jpeg2000"),
    HTJ2K_RPCL: Syntax("jpeg2000"),
    HTJ2K: Syntax("jpeg2000"),
}
"""Compressed transfer syntaxes by UID."""
