from typing import Any

import numpy as np
import pytest

from pipeline.dicom.headers import Header, read_header
from pipeline.dicom.limits import Limits
from pipeline.dicom.pixeldata import check_pixels, read_frames
from storage_schemas.errors import SliceError
from tests import made_dicom

WORDS = np.zeros((4, 6), np.uint16)
JPEG_LOSSLESS = "1.2.840.10008.1.2.4.70"


def header_of(data: bytes) -> Header:
    return read_header("k", data, Limits())


def kind_of(data: bytes, limits: Limits | None = None) -> str:
    with pytest.raises(SliceError) as caught:
        check_and_cut(data, limits or Limits())
    assert caught.value.key == "k"
    return caught.value.kind


def check_and_cut(data: bytes, limits: Limits) -> None:
    header = header_of(data)
    check_pixels(header, limits)
    read_frames(header)


@pytest.mark.parametrize(
    "fields",
    [
        {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"},
        {"PhotometricInterpretation": "PALETTE COLOR"},
        {"BitsAllocated": 32, "BitsStored": 32},
        {"BitsStored": 7},
        {"BitsStored": 12, "HighBit": 15},
    ],
)
def test_pixels_of_another_form_than_a_ct_slice_are_refused(fields: dict[str, Any]) -> None:
    assert kind_of(made_dicom.make_object(WORDS, **fields)) == "pixel-format-unsupported"


def test_a_transfer_syntax_that_is_not_on_the_list_is_refused() -> None:
    data = made_dicom.make_object(WORDS).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.9\0")
    assert kind_of(data) == "syntax-unsupported"


@pytest.mark.parametrize(("rows", "columns"), [(65535, 65535), (0, 6), (4, 0)])
def test_more_pixels_than_the_budget_or_none_are_refused(rows: int, columns: int) -> None:
    data = made_dicom.make_object(WORDS, Rows=rows, Columns=columns)
    assert kind_of(data) == "size-over-budget"


def test_frames_count_in_the_budget() -> None:
    data = made_dicom.make_object(WORDS, NumberOfFrames=2**31)
    assert kind_of(data) == "size-over-budget"
    data = made_dicom.make_object(np.zeros((3, 4, 6), np.uint16), NumberOfFrames=3)
    assert kind_of(data, Limits(object_pixels=71)) == "size-over-budget"
    check_and_cut(data, Limits(object_pixels=72))


@pytest.mark.parametrize("rows", [3, 5])
def test_native_pixels_of_another_length_than_the_header_states_are_refused(rows: int) -> None:
    assert kind_of(made_dicom.make_object(WORDS, Rows=rows)) == "length-mismatch"


def test_an_odd_number_of_bytes_may_be_filled_to_an_even_one() -> None:
    odd = np.arange(15, dtype=np.uint8).reshape(3, 5)
    (frame,) = read_frames(header_of(made_dicom.make_object(odd)))
    assert frame == odd.tobytes()


def test_compressed_pixels_of_defined_length_are_refused() -> None:
    data = made_dicom.make_object(WORDS)
    data = data.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0")
    assert kind_of(data) == "length-mismatch"


@pytest.mark.parametrize("frames", [2, 4])
def test_fragments_that_make_another_number_of_frames_are_refused(frames: int) -> None:
    pieces = [made_dicom.ENCODERS[JPEG_LOSSLESS](WORDS, 16)] * 3
    data = made_dicom.make_object(WORDS, JPEG_LOSSLESS, pieces=pieces, NumberOfFrames=frames)
    assert kind_of(data) == "length-mismatch"


def test_an_object_without_its_sequence_delimiter_is_truncated() -> None:
    data = made_dicom.make_object(made_dicom.smooth_image(), JPEG_LOSSLESS, BitsStored=12)
    assert kind_of(data[:-8]) == "truncated"
