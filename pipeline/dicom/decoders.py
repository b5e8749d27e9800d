"""Decode frames into stored values with a fixed ladder of named decoders.

Each transfer syntax has its own ladder, and the rung that decoded a frame is recorded. The next
rung is tried only if a decoder does not support a *feature* or is not installed. If a decoder
reports damaged data, the frame is refused: a more lenient decoder would invent pixels.

GDCM can abort its whole process, so it always runs in a separate one
(`pipeline.dicom.gdcm_process`).
"""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from pipeline.dicom import syntaxes as uids
from pipeline.dicom.codestreams import (
    EOI,
    CodestreamError,
    FrameForm,
    check_rle,
    read_jpeg,
    read_jpeg2000,
)
from pipeline.dicom.headers import Header
from pipeline.dicom.limits import Limits
from storage_schemas.errors import SliceError

Words = NDArray[np.unsignedinteger[Any]]
"""Stored words, uint8 or uint16, neither masked nor sign-extended."""
Piece = Any
"""A memoryview; imagecodecs accepts any buffer, but its annotations allow only bytes."""


class UnknownFeatureError(Exception):
    """The decoder does not support a feature of the frame, or is not installed."""


@dataclass(frozen=True)
class Frame:
    """Format of one frame, as described by the DICOM header.

    Parameters
    ----------
    syntax : str
    rows, columns : int
    bits_allocated, bits_stored : int
    signed : bool
    """

    syntax: str
    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    signed: bool

    @property
    def words(self) -> np.dtype[np.unsignedinteger[Any]]:
        """The unsigned type of one stored value."""
        return np.dtype(np.uint8) if self.bits_allocated == 8 else np.dtype(np.uint16)


Rung = Callable[[Piece, Frame, Limits, Words | None], NDArray[Any]]


def decode_frame(
    header: Header, piece: memoryview, limits: Limits, out: Words | None = None
) -> tuple[Words, str]:
    """Decode one frame.

    Parameters
    ----------
    header : Header
        Header that `pipeline.dicom.pixeldata.check_pixels` has accepted.
    piece : memoryview
        Bytes of the frame, as returned by `pipeline.dicom.pixeldata.read_frames`.
    limits : Limits
        Budgets; `child_seconds` is the time limit of the decoder in a separate process.
    out : ndarray, shape (rows, columns), optional
        Buffer that a decoder may write to. Use the returned array, which may be another one.

    Returns
    -------
    (ndarray, str)
        Stored words, shape (rows, columns), uint8 or uint16, neither masked nor sign-extended; and
        the name of the decoder.

    Raises
    ------
    SliceError
        ``codestream-mismatch``, ``codestream-truncated`` or ``decode-failed``.
    """
    frame = _frame_of(header)
    if header.syntax in uids.NATIVE:
        words = np.frombuffer(piece, frame.words)
        if header.elements.big_endian != (sys.byteorder == "big"):
            words = words.byteswap()
        return words.reshape(frame.rows, frame.columns), "native"
    try:
        check_frame(frame, piece)
    except CodestreamError as error:
        raise SliceError(error.kind, str(error), key=header.key) from None
    reasons = []
    for name, rung in LADDERS[header.syntax].items():
        try:
            return _as_words(rung(piece, frame, limits, out), frame), name
        except (UnknownFeatureError, ImportError) as error:
            reasons.append(f"{name}: {error}")
        except Exception as error:  # noqa: BLE001 - each library raises errors of its own
            reasons.append(f"{name}: {error}")
            break
    raise SliceError("decode-failed", "; ".join(reasons), key=header.key)


def read_form(header: Header, piece: memoryview) -> FrameForm:
    """Read the header of a compressed frame; precision is 0 if the coding does not store one."""
    return CODINGS[uids.SYNTAXES[header.syntax].coding](piece, _frame_of(header))


def decode_with(
    name: str, header: Header, piece: memoryview, limits: Limits, bits: int | None = None
) -> Words:
    """Decode a frame that `decode_frame` has accepted with a given decoder, or with GDCM.

    Parameters
    ----------
    bits : int, optional
        Bits per stored value, BitsStored by default; GDCM clears the bits above.

    Raises
    ------
    SliceError
        ``decode-failed``.
    """
    frame = replace(_frame_of(header), bits_stored=bits or header.bits_stored)
    rung = LADDERS[header.syntax].get(name, _gdcm)
    try:
        return _as_words(rung(piece, frame, limits, None), frame)
    except Exception as error:  # noqa: BLE001 - each library raises errors of its own
        raise SliceError("decode-failed", f"{name}: {error}", key=header.key) from None


def _frame_of(header: Header) -> Frame:
    return Frame(
        header.syntax,
        header.rows,
        header.columns,
        header.bits_allocated,
        header.bits_stored,
        header.signed,
    )


def check_frame(frame: Frame, piece: memoryview) -> None:
    """Compare the codestream's header with the DICOM header; raises CodestreamError."""
    syntax = uids.SYNTAXES[frame.syntax]
    form = CODINGS[syntax.coding](piece, frame)
    found = (form.rows, form.columns, form.components)
    if found != (frame.rows, frame.columns, 1):
        raise CodestreamError(
            "codestream-mismatch",
            "{} x {} x {} inside, {} x {} x 1 in the header".format(
                *found, frame.rows, frame.columns
            ),
        )
    if form.precision and (
        form.precision > frame.bits_allocated or not _sign_is_known(frame, form)
    ):
        raise CodestreamError(
            "codestream-mismatch",
            f"{form.precision} bits {'' if form.signed else 'un'}signed inside,"
            f" {frame.bits_stored} bits {'' if frame.signed else 'un'}signed in the header",
        )
    if syntax.processes and form.process not in syntax.processes:
        raise CodestreamError("codestream-mismatch", f"JPEG process 0x{form.process:02X} inside")
    if form.process == uids.LOSSLESS_PROCESS and len(piece) * 8 < frame.rows * frame.columns:
        # A Huffman code has at least one bit per pixel.
        raise CodestreamError("codestream-truncated", f"{len(piece)} bytes for {found} pixels")


def _sign_is_known(frame: Frame, form: FrameForm) -> bool:
    """Whether the sign is unambiguous: not so for signed values in fewer bits than BitsStored."""
    return not frame.signed or form.signed or form.precision >= frame.bits_stored


def _read_rle(piece: memoryview, frame: Frame) -> FrameForm:
    """Check the segments of an RLE frame, which stores no size or precision (PS3.5 annex G)."""
    check_rle(piece, frame.bits_allocated // 8)
    return FrameForm(frame.rows, frame.columns, 1, 0)


CODINGS: Mapping[str, Callable[[memoryview, Frame], FrameForm]] = {
    "rle": _read_rle,
    "jpeg": lambda piece, _: read_jpeg(piece),
    "jpeg2000": lambda piece, _: read_jpeg2000(piece),
}
"""Functions by coding that read a frame's header and refuse truncated frames."""


def _as_words(decoded: NDArray[Any], frame: Frame) -> Words:
    if decoded.shape != (frame.rows, frame.columns) or decoded.dtype.itemsize > 2:
        raise ValueError(f"decoded to {decoded.shape} {decoded.dtype}")
    if decoded.dtype.kind not in "iu":
        raise ValueError(f"decoded to {decoded.dtype}")
    if decoded.dtype.itemsize == frame.words.itemsize:
        return decoded.view(frame.words)
    return decoded.astype(frame.words)


# ---- rungs ---------------------------------------------------------------------------------------


def _usable(out: Words | None, dtype: type) -> Words | None:
    return out if out is not None and out.dtype == dtype and out.flags.c_contiguous else None


def _jpeg8(piece: Piece, frame: Frame, _: Limits, out: Words | None) -> NDArray[Any]:
    form = read_jpeg(piece)
    words = np.uint8 if form.precision <= 8 else np.uint16
    try:
        image = np.asarray(imagecodecs.jpeg8_decode(piece, out=_usable(out, words)))
        if _may_have_run_dry(image, form) and _ran_dry(piece, image):
            raise ValueError("the data end before the image does")
    except imagecodecs.Jpeg8Error as error:
        raise _unknown_or(error, "Unsupported", "SOF type", "not supported") from None
    return image


def _may_have_run_dry(image: NDArray[Any], form: FrameForm) -> bool:
    """Whether the decoder may have run out of data, for which libjpeg-turbo only warns.

    Missing lossless rows have the initial prediction, half of the range (T.81 H.1.2.1), which
    hardly ever fills the last row of a CT. The fill of missing lossy rows depends on the image
    content, so lossy frames are always checked.
    """
    return form.process != uids.LOSSLESS_PROCESS or bool(
        (image[-1] == 1 << (form.precision - 1)).all()
    )


def _ran_dry(piece: memoryview, image: NDArray[Any]) -> bool:
    """Whether the data end early: then extra bytes before the end marker change the image."""
    body, mark, _ = bytes(piece).rpartition(EOI)
    spare = bytes(4 * image.shape[1])
    return not np.array_equal(imagecodecs.jpeg8_decode(body + spare + mark), image)


def _jpegls(piece: Piece, frame: Frame, _: Limits, out: Words | None) -> NDArray[Any]:
    words = np.uint8 if read_jpeg(piece).precision <= 8 else np.uint16
    return np.asarray(imagecodecs.jpegls_decode(piece, out=_usable(out, words)))


def _jpeg2k(piece: Piece, frame: Frame, _: Limits, out: Words | None) -> NDArray[Any]:
    return np.asarray(imagecodecs.jpeg2k_decode(piece, numthreads=1))


def _dicomrle(piece: Piece, frame: Frame, _: Limits, out: Words | None) -> NDArray[Any]:
    words = frame.words.newbyteorder("<")
    data = imagecodecs.dicomrle_decode(piece, words)
    return np.frombuffer(data, words).reshape(frame.rows, frame.columns)


def _gdcm(piece: Piece, frame: Frame, limits: Limits, out: Words | None) -> NDArray[Any]:
    """Decode with GDCM in a separate process, which may crash."""
    head = json.dumps({**frame.__dict__, "length": len(piece)}).encode() + b"\n"
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pipeline.dicom.gdcm_process"],
        input=head + bytes(piece),
        capture_output=True,
        timeout=limits.child_seconds,
        check=False,
    )
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise ValueError(f"the process ended with {done.returncode} {''.join(last)[:200]}")
    words = frame.words.newbyteorder("<")
    return np.frombuffer(done.stdout, words).reshape(frame.rows, frame.columns)


def _unknown_or(error: Exception, *marks: str) -> Exception:
    known = any(mark in str(error) for mark in marks)
    return UnknownFeatureError(str(error)) if known else ValueError(str(error))


def _htj2k(piece: Piece, frame: Frame, _: Limits, out: Words | None) -> NDArray[Any]:
    return np.asarray(imagecodecs.htj2k_decode(piece))


# The packages below are optional; if one is not installed, the next rung is tried.


def _pyjpegls(piece: Piece, frame: Frame, _: Limits, out: Words | None) -> NDArray[Any]:
    import jpeg_ls

    return np.asarray(jpeg_ls.decode(np.frombuffer(piece, np.uint8)))


def _openjpeg(piece: Piece, frame: Frame, _: Limits, out: Words | None) -> NDArray[Any]:
    import openjpeg

    return np.asarray(openjpeg.decode(bytes(piece)))


def _pylibjpeg_rle(piece: Piece, frame: Frame, _: Limits, out: Words | None) -> NDArray[Any]:
    from rle.rle import decode_frame as decode_rle

    words = frame.words.newbyteorder("<")
    data = decode_rle(bytes(piece), frame.rows * frame.columns, frame.bits_allocated, "<")
    return np.frombuffer(data, words).reshape(frame.rows, frame.columns)


_JPEG = {"imagecodecs.jpeg8": _jpeg8, "gdcm": _gdcm}
_JPEG_LS = {"imagecodecs.jpegls": _jpegls, "pyjpegls": _pyjpegls}
_JPEG_2000 = {"imagecodecs.jpeg2k": _jpeg2k, "pylibjpeg.openjpeg": _openjpeg}
# OpenJPEG refuses truncated frames; OpenJPH is twice as fast but invents the missing pixels.
_HTJ2K = {"imagecodecs.jpeg2k": _jpeg2k, "imagecodecs.htj2k": _htj2k}

LADDERS: Mapping[str, Mapping[str, Rung]] = {
    uids.RLE: {"imagecodecs.dicomrle": _dicomrle, "pylibjpeg.rle": _pylibjpeg_rle},
    uids.JPEG_BASELINE: _JPEG,
    uids.JPEG_EXTENDED: _JPEG,
    uids.JPEG_LOSSLESS: _JPEG,
    uids.JPEG_LOSSLESS_SV1: _JPEG,
    uids.JPEG_LS: _JPEG_LS,
    uids.JPEG_LS_NEAR: _JPEG_LS,
    uids.JPEG_2000_LOSSLESS: _JPEG_2000,
    uids.JPEG_2000: _JPEG_2000,
    uids.HTJ2K_LOSSLESS: _HTJ2K,
    uids.HTJ2K_RPCL: _HTJ2K,
    uids.HTJ2K: _HTJ2K,
}
"""Decoders of each compressed transfer syntax, in the order in which they are tried."""
