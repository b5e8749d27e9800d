from typing import Any

import imagecodecs
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.dicom import decoders
from pipeline.dicom.decoders import Frame, UnknownFeatureError, decode_frame
from pipeline.dicom.headers import Header, read_header
from pipeline.dicom.limits import Limits
from pipeline.dicom.pixeldata import read_frames
from pipeline.dicom.syntaxes import NATIVE, SYNTAXES
from storage_schemas.errors import SliceError
from tests import made_dicom

JPEG_BASELINE, JPEG_LOSSLESS = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.70"
JPEG_LS, JPEG_2000 = "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90"
IMAGE = made_dicom.smooth_image((40, 30))
EXACT = [s for s in made_dicom.ENCODERS if s not in made_dicom.LOSSY]


def read(data: bytes) -> tuple[Header, memoryview]:
    header = read_header("k", data, Limits())
    return header, read_frames(header)[0]


def decode(data: bytes) -> tuple[NDArray[Any], str]:
    return decode_frame(*read(data), Limits())


def refused(data: bytes) -> SliceError:
    with pytest.raises(SliceError) as caught:
        decode(data)
    return caught.value


def test_every_supported_syntax_has_an_encoder_in_these_tests() -> None:
    assert set(made_dicom.SYNTAXES) == (NATIVE | set(SYNTAXES))


@pytest.mark.parametrize("syntax", EXACT)
def test_the_first_rung_of_a_lossless_syntax_is_exact(syntax: str) -> None:
    words, name = decode(made_dicom.make_object(IMAGE, syntax, BitsStored=12))
    np.testing.assert_array_equal(words, IMAGE)
    assert name == next(iter(decoders.LADDERS[syntax]))


@pytest.mark.parametrize("syntax", made_dicom.LOSSY)
def test_the_first_rung_of_a_lossy_syntax_is_close(syntax: str) -> None:
    bits = 8 if syntax in made_dicom.EIGHT_BIT else 12
    image = made_dicom.smooth_image((40, 30), bits)
    words, _ = decode(made_dicom.make_object(image, syntax, BitsStored=bits))
    assert np.abs(words.astype(int) - image).max() <= 40


@pytest.mark.parametrize(
    ("syntax", "rung"),
    [(s, name) for s in EXACT for name in decoders.LADDERS[s]],
)
def test_every_rung_gives_the_same_words(syntax: str, rung: str) -> None:
    _, piece = read(made_dicom.make_object(IMAGE, syntax, BitsStored=12))
    frame = Frame(syntax, 40, 30, 16, 12, signed=False)
    decoded = decoders.LADDERS[syntax][rung](piece, frame, Limits(), None)
    np.testing.assert_array_equal(decoded, IMAGE)


def test_a_rung_that_does_not_know_a_feature_hands_on_to_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unknowing(*_: object) -> NDArray[Any]:
        raise UnknownFeatureError("never heard of it")

    ladder = {"first": unknowing, "second": lambda *_: IMAGE}
    monkeypatch.setattr(decoders, "LADDERS", {JPEG_LS: ladder})
    words, name = decode(made_dicom.make_object(IMAGE, JPEG_LS, BitsStored=12))
    assert name == "second"
    np.testing.assert_array_equal(words, IMAGE)


def test_damage_is_never_handed_on_to_a_laxer_rung(monkeypatch: pytest.MonkeyPatch) -> None:
    def strict(*_: object) -> NDArray[Any]:
        raise ValueError("damaged")

    def lax(*_: object) -> NDArray[Any]:
        raise AssertionError("asked")

    monkeypatch.setattr(decoders, "LADDERS", {JPEG_LS: {"strict": strict, "lax": lax}})
    error = refused(made_dicom.make_object(IMAGE, JPEG_LS, BitsStored=12))
    assert (error.kind, error.detail) == ("decode-failed", "strict: damaged")


def test_gdcm_aborts_a_process_of_its_own() -> None:
    # GDCM asserts that a pixel has as many bits allocated as stored, or more.
    _, piece = read(made_dicom.make_object(IMAGE, JPEG_LOSSLESS, BitsStored=12))
    frame = Frame(JPEG_LOSSLESS, 40, 30, 16, 99, signed=False)
    with pytest.raises(ValueError, match="the process ended with"):
        decoders._gdcm(piece, frame, Limits(), None)


def test_a_decoder_that_hangs_is_ended_after_its_time() -> None:
    _, piece = read(made_dicom.make_object(IMAGE, JPEG_LOSSLESS, BitsStored=12))
    frame = Frame(JPEG_LOSSLESS, 40, 30, 16, 12, signed=False)
    with pytest.raises(Exception, match="timed out"):
        decoders._gdcm(piece, frame, Limits(child_seconds=1e-3), None)


@pytest.mark.parametrize(
    ("piece", "kind"),
    [
        (made_dicom.ENCODERS[JPEG_LOSSLESS](IMAGE[:20], 12), "codestream-mismatch"),
        (imagecodecs.jpeg8_encode(np.zeros((40, 30, 3), np.uint8)), "codestream-mismatch"),
        (made_dicom.ENCODERS[JPEG_LS](IMAGE, 12), "codestream-mismatch"),
        (made_dicom.ENCODERS[JPEG_2000](IMAGE, 12), "codestream-mismatch"),
        (b"\xff\xd8\xff\xd9", "codestream-mismatch"),
        (b"\0\0", "codestream-mismatch"),
    ],
)
def test_a_frame_that_is_not_what_its_header_says_meets_no_decoder(
    monkeypatch: pytest.MonkeyPatch, piece: bytes, kind: str
) -> None:
    monkeypatch.setattr(decoders, "LADDERS", {})
    data = made_dicom.make_object(IMAGE, JPEG_LOSSLESS, pieces=[piece], BitsStored=12)
    assert refused(data).kind == kind


def test_signed_values_in_too_few_unsigned_bits_are_refused() -> None:
    piece = made_dicom.ENCODERS[JPEG_LOSSLESS](IMAGE, 12)
    data = made_dicom.make_object(IMAGE, JPEG_LOSSLESS, pieces=[piece], PixelRepresentation=1)
    error = refused(data)
    assert error.kind == "codestream-mismatch"
    assert "12 bits unsigned inside, 16 bits signed in the header" in error.detail


def test_an_image_of_half_the_range_is_not_taken_for_lost_data() -> None:
    flat = np.full((40, 30), 2048, np.uint16)
    words, _ = decode(made_dicom.make_object(flat, JPEG_LOSSLESS, BitsStored=12))
    np.testing.assert_array_equal(words, flat)


@pytest.mark.parametrize("fill", [b"\0", b"\xff", b"\0\0\0"])
def test_fill_after_the_end_mark_is_no_damage(fill: bytes) -> None:
    for syntax in (JPEG_LOSSLESS, JPEG_LS, JPEG_2000):
        piece = made_dicom.ENCODERS[syntax](IMAGE, 12) + fill
        words, _ = decode(made_dicom.make_object(IMAGE, syntax, pieces=[piece], BitsStored=12))
        np.testing.assert_array_equal(words, IMAGE)


def test_more_tiles_than_a_ct_slice_has_are_refused() -> None:
    piece = made_dicom.ENCODERS[JPEG_2000](IMAGE, 12)
    tiny = piece[:24] + bytes([0, 0, 0, 1, 0, 0, 0, 1]) + piece[32:]
    error = refused(made_dicom.make_object(IMAGE, JPEG_2000, pieces=[tiny], BitsStored=12))
    assert error.kind == "codestream-mismatch"
    assert "1200 tiles" in error.detail


@pytest.mark.parametrize(
    ("segments", "kind"),
    [
        ([1, 64], "codestream-mismatch"),
        ([2, 64, 60], "codestream-mismatch"),
        ([2, 64, 9999], "codestream-truncated"),
        ([2, 64, 64], "codestream-mismatch"),
    ],
)
def test_rle_segments_that_do_not_fit_are_refused(segments: list[int], kind: str) -> None:
    piece = made_dicom.ENCODERS[made_dicom.RLE](IMAGE, 12)
    head = np.zeros(16, "<u4")
    head[: len(segments)] = segments
    data = made_dicom.make_object(
        IMAGE, made_dicom.RLE, pieces=[head.tobytes() + piece[64:]], BitsStored=12
    )
    assert refused(data).kind == kind
