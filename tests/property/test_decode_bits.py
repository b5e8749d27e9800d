"""Stored values survive every bit depth, sign, coding and whatever stands in the unused bits."""

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from pipeline.dicom import elements as reading
from pipeline.dicom.hounsfield import (
    find_padding,
    stored_range,
    to_stored_values,
    write_hounsfield,
)
from pipeline.dicom.volume import read_volume
from storage_schemas.errors import SliceError
from tests import made_dicom

SHAPE = (6, 5)
EXACT = [s for s in made_dicom.SYNTAXES if s not in made_dicom.LOSSY]


@st.composite
def stored_slices(draw: st.DrawFn) -> tuple[NDArray[np.int64], int, bool, int]:
    """Values of two slices, BitsStored, sign, and junk for the unused bits."""
    bits = draw(st.integers(8, 16))
    signed = draw(st.booleans())
    low, high = stored_range(bits, signed)
    # Some values at the ends, where a wrong mask shows.
    value = st.one_of(st.integers(low, high), st.sampled_from((low, high, -1 if signed else low)))
    count = 2 * SHAPE[0] * SHAPE[1]
    values = draw(st.lists(value, min_size=count, max_size=count))
    junk = draw(st.integers(0, (1 << (16 - bits)) - 1))
    return np.asarray(values, np.int64).reshape(2, *SHAPE), bits, signed, junk


@settings(max_examples=120, deadline=None)
@given(slices=stored_slices(), syntax=st.sampled_from(EXACT), data=st.data())
def test_stored_values_survive_bit_depth_sign_coding_and_junk(
    slices: tuple[NDArray[np.int64], int, bool, int], syntax: str, data: st.DataObject
) -> None:
    values, bits, signed, junk = slices
    low, high = int(values.min()), int(values.max())
    assume(high - low <= 2 * 32767)  # else no intercept makes them 16-bit Hounsfield units
    intercept = data.draw(st.integers(-32767 - low, 32767 - high), label="intercept")
    words = (values & ((1 << bits) - 1) | junk << bits).astype(np.uint16)
    # A codec that stores all 16 bits keeps the junk; one told of fewer is never given any.
    fields: dict[str, Any] = {"RescaleIntercept": intercept, "PixelRepresentation": int(signed)}
    pieces = None
    if syntax in made_dicom.ENCODERS:
        pieces = [made_dicom.ENCODERS[syntax](image, 16) for image in words]
    objects = [
        made_dicom.make_object(
            image,
            syntax,
            pieces=pieces[z : z + 1] if pieces else None,
            BitsStored=bits,
            ImagePositionPatient=[0, 0, z],
            **fields,
        )
        for z, image in enumerate(words)
    ]
    volume = read_volume(made_dicom.name_objects(objects), threads=1)
    np.testing.assert_array_equal(volume.hu, values + intercept)


@settings(max_examples=200, deadline=None)
@given(slices=stored_slices(), data=st.data())
def test_padding_is_what_lies_in_its_range_before_the_rescale_and_only_that(
    slices: tuple[NDArray[np.int64], int, bool, int], data: st.DataObject
) -> None:
    values, bits, signed, junk = slices
    words = (values & ((1 << bits) - 1) | junk << bits).astype(np.uint16)
    low, high = stored_range(bits, signed)
    first = data.draw(st.integers(low, high), label="padding value")
    last = data.draw(st.integers(low, high), label="range limit")
    padded = find_padding(words, bits, signed, (first & 0xFFFF, last & 0xFFFF))
    inside = (min(first, last) <= values) & (values <= max(first, last))
    np.testing.assert_array_equal(padded, inside)
    np.testing.assert_array_equal(to_stored_values(words, bits, signed), values)


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(st.integers(-32768, 32767), min_size=4, max_size=4),
    slope=st.integers(1, 40),
    intercept=st.integers(-40_000, 40_000),
)
def test_hounsfield_units_are_exact_or_refused(
    values: list[int], slope: int, intercept: int
) -> None:
    exact = np.asarray(values).reshape(2, 2) * slope + intercept
    words = np.asarray(values, np.int16).reshape(2, 2).view(np.uint16)
    out = np.empty((2, 2), np.int16)
    form: dict[str, Any] = {"key": "k", "bits_stored": 16, "signed": True, "padding": None}
    if np.abs(exact).max() <= 32767:
        write_hounsfield(words, out, rescale=(slope, intercept), **form)
        np.testing.assert_array_equal(out, exact)
    else:
        with pytest.raises(SliceError, match="hu-out-of-range"):
            write_hounsfield(words, out, rescale=(slope, intercept), **form)


texts = st.text(st.characters(codec="ascii", min_codepoint=32, exclude_characters="\\"), max_size=9)


@st.composite
def data_sets(draw: st.DrawFn, depth: int = 0) -> Dataset:
    """A data set with private elements and nested sequences, of known or unknown length."""
    data = Dataset()
    if draw(st.booleans()):
        data.StudyDescription = draw(texts)
        data.add_new(0x00090010, "LO", "creator")
        data.add_new(
            0x00091001, "OB", draw(st.binary(max_size=9).map(lambda b: b + b"\0" * (len(b) % 2)))
        )
    if draw(st.booleans()):
        data.ImagePositionPatient = draw(st.lists(st.integers(-99, 99), min_size=3, max_size=3))
        data.Rows = draw(st.integers(0, 65535))
    if depth < 3:
        for keyword in ("ReferencedStudySequence", "RequestAttributesSequence"):
            if draw(st.booleans()):
                items = draw(st.lists(data_sets(depth + 1), max_size=2))
                for item in items:
                    item.is_undefined_length_sequence_item = draw(st.booleans())
                setattr(data, keyword, Sequence(items))
                data[keyword].is_undefined_length = draw(st.booleans())
    return data


@settings(max_examples=150, deadline=None)
@given(extra=data_sets(), implicit=st.booleans())
def test_the_narrow_reader_reads_what_pydicom_reads(extra: Dataset, implicit: bool) -> None:
    data = made_dicom.make_dataset(np.zeros((2, 2), np.uint16))
    data.update(extra)
    data.PixelData, data["PixelData"].VR = bytes(8), "OW"
    syntax = made_dicom.IMPLICIT if implicit else made_dicom.EXPLICIT
    written = made_dicom.write(data, syntax)
    _, _, start = reading._read_meta("k", written)
    ours = reading._walk(written, start, implicit=implicit)
    assert ours == reading._ask_pydicom("k", written, start, implicit=implicit, big=False)
    assert ours.pixel_start == len(written) - 8
