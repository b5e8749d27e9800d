"""Decoded values against the header: right, as independent decoders have them, or refused by name.

What GDCM, pylibjpeg and SimpleITK make of these codestreams was measured: they agree on the values
of JPEG 2000, and on none that is cut to BitsStored.
"""

from typing import Any

import imagecodecs
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.dicom.crosscheck import cross_check
from pipeline.dicom.selection import NoVolumeError
from pipeline.dicom.volume import read_volume
from storage_schemas.errors import SliceError
from tests import made_dicom

JPEG = "1.2.840.10008.1.2.4."
WHOLE = [made_dicom.RLE, *(f"{JPEG}{dot}" for dot in ("57", "70", "80", "90", "201", "202", "203"))]
WIDE = [*WHOLE, f"{JPEG}81", f"{JPEG}91"]


def metal() -> NDArray[np.uint16]:
    """12-bit values with two beyond them."""
    image = made_dicom.smooth_image(bits=12)
    image[3, 4], image[5, 6] = 4170, 4096
    return image


def read(pieces: list[bytes], syntax: str, words: NDArray[Any], **fields: Any) -> Any:
    """Two slices of the same words; the volume, or the refusal of one."""
    objects = [
        made_dicom.make_object(
            words, syntax, pieces=pieces, **{"ImagePositionPatient": [0, 0, z], "BitsStored": 12,
                                             **fields})
        for z in (0, 1)
    ]  # fmt: skip
    try:
        return read_volume(made_dicom.name_objects(objects), threads=1).hu[0], objects[0]
    except NoVolumeError as error:
        return error.refused[0], objects[0]


def coded(syntax: str, words: NDArray[Any], bits: int = 16) -> list[bytes]:
    return [made_dicom.ENCODERS[syntax](words, bits)]


@pytest.mark.parametrize("syntax", WHOLE)
def test_a_value_beyond_bits_stored_in_a_codestream_is_itself(syntax: str) -> None:
    words = metal()
    hu, data = read(coded(syntax, words), syntax, words)
    np.testing.assert_array_equal(hu, words.astype(int) - 1024)
    assert cross_check("k", data) is None


@pytest.mark.parametrize("syntax", [f"{JPEG}81", f"{JPEG}91"])
def test_a_lossy_coding_that_overshoots_is_never_wrapped(syntax: str) -> None:
    words = np.random.default_rng(0).integers(4070, 4096, (32, 32), np.uint16)
    words[:8] = 100
    (piece,) = coded(syntax, words)
    if syntax.endswith("81"):
        piece = imagecodecs.jpegls_encode(words, level=9)
        decoded = imagecodecs.jpegls_decode(piece)
    else:
        piece = imagecodecs.jpeg2k_encode(
            words, level=30, codecformat="j2k", bitspersample=16, reversible=False
        )
        decoded = imagecodecs.jpeg2k_decode(piece)
    assert decoded.max() > 4095
    hu, _ = read([piece], syntax, words)
    np.testing.assert_array_equal(hu, decoded.astype(int) - 1024)


@pytest.mark.parametrize("syntax", [f"{JPEG}90", f"{JPEG}201"])
def test_a_signed_codestream_keeps_its_values_beyond_bits_stored(syntax: str) -> None:
    values = made_dicom.smooth_image(bits=12).astype(np.int16) - 1024
    values[2, 2], values[3, 3] = 2100, -2100
    encode = imagecodecs.jpeg2k_encode if syntax.endswith("90") else imagecodecs.htj2k_encode
    options = {"level": 0, "codecformat": "j2k"} if syntax.endswith("90") else {}
    piece = encode(values, reversible=True, **options)
    fields = {"PixelRepresentation": 1, "RescaleIntercept": 0}
    hu, _ = read([piece], syntax, values.view(np.uint16), **fields)
    np.testing.assert_array_equal(hu, values)
    error, _ = read([piece], syntax, values.view(np.uint16))
    assert isinstance(error, SliceError)
    assert error.kind == "codestream-mismatch"


def test_sign_extended_words_with_one_beyond_are_read_as_they_stand() -> None:
    values = made_dicom.smooth_image(bits=11).astype(np.int16) - 1024
    values[2, 2] = 2100
    for syntax in (made_dicom.RLE, f"{JPEG}70", f"{JPEG}80", f"{JPEG}90"):
        words = values.view(np.uint16)
        fields = {"PixelRepresentation": 1, "RescaleIntercept": 0}
        hu, _ = read(coded(syntax, words), syntax, words, **fields)
        np.testing.assert_array_equal(hu, values)


def test_native_words_beyond_bits_stored_are_refused_by_name_unless_they_hold_an_overlay() -> None:
    words = metal()
    native = {"pieces": None}
    objects = [
        made_dicom.make_object(words, BitsStored=12, ImagePositionPatient=[0, 0, z], **native)
        for z in (0, 1)
    ]
    with pytest.raises(NoVolumeError) as caught:
        read_volume(made_dicom.name_objects(objects), threads=1)
    assert caught.value.refused[0].kind == "values-beyond-bits"
    data = made_dicom.make_dataset(words, BitsStored=12)
    data.add_new(0x60000102, "US", 12)
    data.PixelData, data["PixelData"].VR = words.tobytes(), "OW"
    with_overlay = []
    for z in (0, 1):
        data.ImagePositionPatient = [0, 0, z]
        with_overlay.append(made_dicom.write(data, made_dicom.EXPLICIT))
    hu = read_volume(made_dicom.name_objects(with_overlay), threads=1).hu
    np.testing.assert_array_equal(hu[0], (words & 4095).astype(int) - 1024)


def test_padding_beyond_bits_stored_is_no_value() -> None:
    words = made_dicom.smooth_image(bits=12)
    words[0] = 63536
    objects = [
        made_dicom.make_object(
            words, BitsStored=12, ImagePositionPatient=[0, 0, z], PixelPaddingValue=63536
        )
        for z in (0, 1)
    ]
    hu = read_volume(made_dicom.name_objects(objects), threads=1).hu[0]
    assert (hu[0] == -1024).all()
    np.testing.assert_array_equal(hu[1:], words[1:].astype(int) - 1024)


@pytest.mark.parametrize("syntax", [f"{JPEG}90", f"{JPEG}91"])
@pytest.mark.parametrize("fragments", [1, 2])
def test_a_codestream_in_a_jp2_file_is_read(syntax: str, fragments: int) -> None:
    words = made_dicom.smooth_image(bits=12)
    wrapped = imagecodecs.jpeg2k_encode(
        words, level=0, codecformat="jp2", bitspersample=12, reversible=True
    )
    assert wrapped[4:8] == b"jP  "
    objects = [
        made_dicom.make_object(
            words, syntax, pieces=[wrapped], fragments=fragments, BitsStored=12,
            ImagePositionPatient=[0, 0, z],
        )
        for z in (0, 1)
    ]  # fmt: skip
    hu = read_volume(made_dicom.name_objects(objects), threads=1).hu[0]
    np.testing.assert_array_equal(hu, words.astype(int) - 1024)


@pytest.mark.parametrize("spare", [1, 2, 10, 64, 100])
@pytest.mark.parametrize("fill", [b"\0", b"\xff"])
def test_native_pixels_may_be_followed_by_padding(spare: int, fill: bytes) -> None:
    words = made_dicom.smooth_image(bits=12)
    raw = words.tobytes() + fill * spare
    hu, _ = read([raw], made_dicom.EXPLICIT, words)
    np.testing.assert_array_equal(hu, words.astype(int) - 1024)


def test_more_pixels_than_rows_and_columns_say_are_no_padding() -> None:
    words = made_dicom.smooth_image(bits=12)
    error, _ = read([words.tobytes() * 2], made_dicom.EXPLICIT, words)
    assert error.kind == "length-mismatch"
    error, _ = read([words.tobytes() + words[:1].tobytes()], made_dicom.EXPLICIT, words)
    assert error.kind == "length-mismatch"


@pytest.mark.parametrize("slope", ["0.99999999999", "1.0000000149", "0.999999940395", "1.00000"])
def test_a_slope_that_is_one_but_for_rounding_is_one(slope: str) -> None:
    words = made_dicom.smooth_image(bits=12)
    fields = {"RescaleSlope": slope, "RescaleIntercept": "-1024.000001"}
    hu, _ = read([words.tobytes()], made_dicom.EXPLICIT, words, **fields)
    np.testing.assert_array_equal(hu, words.astype(int) - 1024)


def test_a_slope_that_is_not_whole_is_named_with_all_its_digits() -> None:
    words = made_dicom.smooth_image(bits=12)
    error, _ = read([words.tobytes()], made_dicom.EXPLICIT, words, RescaleSlope="1.0000512345")
    assert (error.kind, "1.0000512345" in error.detail) == ("rescale-invalid", True)


def test_an_empty_group_of_a_frame_leaves_the_shared_one() -> None:
    from pydicom import dcmread
    from pydicom.filebase import DicomBytesIO
    from pydicom.sequence import Sequence

    words = np.stack([made_dicom.smooth_image(bits=12, seed=n) for n in (0, 1)])
    made = made_dicom.make_enhanced(words, [[0, 0, 0], [0, 0, 1]], BitsStored=12)
    data = dcmread(DicomBytesIO(made))
    for frame in data.PerFrameFunctionalGroupsSequence:
        frame.PixelValueTransformationSequence = Sequence([])
        frame.PixelMeasuresSequence = Sequence([])
    volume = read_volume([("a", made_dicom.write(data, made_dicom.EXPLICIT))], threads=1)
    np.testing.assert_array_equal(volume.hu, words.astype(int) - 1024)
