import numpy as np
import pytest

from pipeline.dicom.hounsfield import (
    check_rescale,
    find_padding,
    to_stored_values,
    write_hounsfield,
)
from storage_schemas.errors import SliceError


def hounsfield(words: list[int], dtype: type = np.uint16, **form: object) -> list[int]:
    given = {
        "key": "k", "bits_stored": 16, "signed": True, "rescale": (1, 0), "padding": None, **form
    }  # fmt: skip
    array = np.asarray([words], dtype)
    out = np.empty(array.shape, np.int16)
    write_hounsfield(array, out, **given)  # type: ignore[arg-type] # a test may say it shorter
    return out[0].tolist()


@pytest.mark.parametrize(
    ("words", "bits", "signed", "values"),
    [
        ([0xF123, 0x0FFF], 12, False, [0x123, 4095]),
        ([0xF7FF, 0x0800, 0x7FFF], 12, True, [2047, -2048, -1]),
        ([0x8000, 0xFFFF], 16, True, [-32768, -1]),
        ([0x8000, 0xFFFF], 16, False, [32768, 65535]),
    ],
)
def test_words_are_masked_to_bits_stored_and_sign_extended(
    words: list[int], bits: int, signed: bool, values: list[int]
) -> None:
    stored = to_stored_values(np.asarray([words], np.uint16), bits, signed)
    assert stored.tolist() == [values]


def test_eight_bit_words_keep_their_sign() -> None:
    assert hounsfield([0, 127, 128, 255], np.uint8, bits_stored=8) == [0, 127, -128, -1]


def test_the_words_themselves_are_never_changed() -> None:
    words = np.asarray([[0xF123, 5]], np.uint16)
    out = np.empty((1, 2), np.int16)
    form = {"key": "k", "bits_stored": 12, "signed": False, "rescale": (1, -1024)}
    write_hounsfield(words, out, padding=(5, 5), **form)  # type: ignore[arg-type] # as above
    assert words.tolist() == [[0xF123, 5]]


def test_decoding_in_place_gives_the_same() -> None:
    words = np.asarray([[0xF123, 5]], np.uint16)
    out = words.view(np.int16)
    form = {"key": "k", "bits_stored": 12, "signed": False, "rescale": (2, -1024)}
    write_hounsfield(words, out, padding=(5, 5), **form)  # type: ignore[arg-type] # as above
    assert out.tolist() == [[2 * 0x123 - 1024, -1024]]


def test_padding_is_compared_before_the_rescale_and_becomes_air() -> None:
    pad = -2000 & 0xFFFF
    assert hounsfield([pad, 976, 0], rescale=(1, 24), padding=(pad, pad)) == [-1024, 1000, 24]


def test_a_padding_range_may_be_given_either_way_round() -> None:
    low, high = -2000 & 0xFFFF, -1990 & 0xFFFF
    for padding in ((low, high), (high, low)):
        assert hounsfield([low, high, -1989 & 0xFFFF], padding=padding) == [-1024, -1024, -1989]


def test_padding_written_for_fewer_bits_than_allocated_is_found_among_stored_values() -> None:
    pad = -2000 & 0xFFFF  # fits 14 bits
    assert find_padding(
        np.asarray([[pad & 0x3FFF, 7]], np.uint16), 14, True, (pad, pad)
    ).tolist() == [[True, False]]


def test_padding_beyond_bits_stored_is_found_in_whole_words_and_nowhere_else() -> None:
    # -2000 does not fit 11 bits; masked to them it would be the value of fat.
    pad = -2000 & 0xFFFF
    words = np.asarray([[pad, pad & 0x7FF]], np.uint16)
    assert find_padding(words, 11, True, (pad, pad)).tolist() == [[True, False]]


def test_padding_that_eight_bits_cannot_hold_pads_nothing() -> None:
    words = np.asarray([[0x30, 0xFF]], np.uint8)
    assert not find_padding(words, 8, False, (0xF830, 0xF830)).any()


def test_padding_does_not_count_when_the_range_is_checked() -> None:
    pad = 0x8000
    assert hounsfield([pad, 0], rescale=(1, -1024), padding=(pad, pad)) == [-1024, -1024]
    with pytest.raises(SliceError, match="hu-out-of-range"):
        hounsfield([pad, 0], rescale=(1, -1024))


def test_a_slice_that_is_all_padding_is_air() -> None:
    assert hounsfield([0x8000, 0x8000], rescale=(3, 9), padding=(0x8000, 0x8000)) == [-1024, -1024]


def test_sixteen_unsigned_bits_fit_where_their_values_do() -> None:
    assert hounsfield([0, 33791], signed=False, rescale=(1, -1024)) == [-1024, 32767]
    with pytest.raises(SliceError, match="-1024 to 32768 HU") as caught:
        hounsfield([0, 33792], signed=False, rescale=(1, -1024))
    assert caught.value.kind == "hu-out-of-range"


@pytest.mark.parametrize(
    ("slope", "intercept"), [(0.5, 0), (1, -1024.5), (0, 0), (-1, 0), (1e9, 0)]
)
def test_a_rescale_that_is_not_whole_and_positive_is_refused(
    slope: float, intercept: float
) -> None:
    with pytest.raises(SliceError) as caught:
        check_rescale("k", slope, intercept)
    assert caught.value.kind == "rescale-invalid"
