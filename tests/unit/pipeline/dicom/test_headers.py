import io

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from pipeline.dicom.headers import check_object, read_header, read_study_uid
from pipeline.dicom.limits import Limits
from pipeline.dicom.planes import read_planes
from storage_schemas.errors import SliceError
from tests import made_dicom

WORDS = np.zeros((4, 6), np.uint16)
LIMITS = Limits()


def plane_error(data: bytes) -> SliceError:
    (plane,) = read_planes(read_header("k", data, LIMITS))
    assert isinstance(plane, SliceError)
    return plane


@pytest.mark.parametrize("syntax", made_dicom.NATIVE)
def test_every_encoding_of_a_header_says_the_same(syntax: str) -> None:
    data = made_dicom.make_object(
        WORDS, syntax, BitsStored=12, PixelPaddingValue=63536, InstanceNumber=-7
    )
    header = read_header("k", data, LIMITS)
    assert (header.rows, header.columns, header.frames) == (4, 6, 1)
    assert (header.bits_allocated, header.bits_stored, header.high_bit) == (16, 12, 11)
    assert (header.study, header.series) == (made_dicom.STUDY, made_dicom.SERIES)
    assert header.padding == (63536, 63536)
    assert header.instance_number == -7
    assert header.scanner == ("maker", "model", "BONE")
    (plane,) = read_planes(header)
    assert not isinstance(plane, SliceError)
    assert (plane.slope, plane.intercept) == (1, -1024)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("ImagePositionPatient", None, "ImagePositionPatient has 0 values, not 3"),
        ("ImagePositionPatient", [0, 0], "ImagePositionPatient has 2 values, not 3"),
        ("ImagePositionPatient", [0, 0, 1e9], "beyond 100000"),
        ("ImageOrientationPatient", None, "ImageOrientationPatient has 0 values, not 6"),
        ("ImageOrientationPatient", [1, 0, 0, 1, 0, 0], "no pair of unit vectors"),
        ("ImageOrientationPatient", [2, 0, 0, 0, 2, 0], "no pair of unit vectors"),
        ("PixelSpacing", [0, 0.5], "not in 0.001 to 100"),
        ("PixelSpacing", None, "PixelSpacing has 0 values, not 2"),
        ("RescaleSlope", None, "RescaleSlope has 0 values, not 1"),
        ("RescaleType", "Z_EFF", "RescaleType is Z_EFF, not HU"),
    ],
)
def test_a_field_that_places_or_scales_a_slice_must_be_there_and_mean_something(
    field: str, value: object, words: str
) -> None:
    error = plane_error(made_dicom.make_object(WORDS, **{field: value}))
    assert error.kind == "header-invalid"
    assert words in error.detail


@pytest.mark.parametrize("unit", ["HU", "US", "", "Hounsfield"])
def test_a_rescale_type_that_names_no_other_unit_is_hounsfield(unit: str) -> None:
    (plane,) = read_planes(
        read_header("k", made_dicom.make_object(WORDS, RescaleType=unit), LIMITS)
    )
    assert not isinstance(plane, SliceError)


def test_a_frame_may_have_a_unit_of_its_own() -> None:
    data = made_dicom.make_enhanced(np.zeros((2, 4, 6), np.uint16), [[0, 0, 0], [0, 0, 1]])
    dataset = pydicom.dcmread(io.BytesIO(data))
    rescale = Dataset()
    rescale.RescaleIntercept, rescale.RescaleSlope, rescale.RescaleType = 0, 1, "MGML"
    frame = dataset.PerFrameFunctionalGroupsSequence[1]
    frame.PixelValueTransformationSequence = [rescale]
    planes = read_planes(read_header("k", made_dicom.write(dataset, made_dicom.EXPLICIT), LIMITS))
    assert [isinstance(plane, SliceError) for plane in planes] == [False, True]
    assert "frame 1: RescaleType is MGML" in str(planes[1])


def test_a_sign_that_is_neither_is_refused_by_the_name_of_its_field() -> None:
    with pytest.raises(SliceError, match="PixelRepresentation is 2, not 0 or 1"):
        read_header("k", made_dicom.make_object(WORDS, PixelRepresentation=2), LIMITS)


def test_a_number_of_another_length_is_refused_by_the_name_of_its_field() -> None:
    data = made_dicom.make_object(WORDS)
    at = data.index(b"\x28\x00\x10\x00US")
    data = data[: at + 6] + b"\4\0\4\0\0\0" + data[at + 10 :]
    with pytest.raises(SliceError, match="Rows has 4 bytes, not 2"):
        read_header("k", data, LIMITS)


def test_a_header_cut_within_an_element_is_called_truncated() -> None:
    data = made_dicom.make_object(WORDS)
    at = data.index(b"\xe0\x7f\x10\x00OW")
    for length in range(at + 1, at + 12):
        with pytest.raises(SliceError) as caught:
            read_header("k", data[:length], LIMITS)
        assert caught.value.kind == "truncated"


@pytest.mark.parametrize("text", [b"nan", b"inf", b"1_0", b"abc", b"1,5"])
def test_what_python_takes_for_a_number_is_not_always_a_decimal_string(text: bytes) -> None:
    data = made_dicom.make_object(WORDS, RescaleIntercept=-98765)
    error = plane_error(data.replace(b"-98765", text.ljust(6)))
    assert error.kind == "header-invalid"


def test_an_unreadable_instance_number_refuses_nothing() -> None:
    data = made_dicom.make_object(WORDS, InstanceNumber=98765).replace(b"98765", b"x8765")
    assert read_header("k", data, LIMITS).instance_number is None


def test_text_in_a_uid_is_refused_and_not_repeated() -> None:
    data = made_dicom.make_object(WORDS).replace(b"1.2.3.4\0", b"Meier^A\0")
    with pytest.raises(SliceError) as caught:
        read_header("k", data, LIMITS)
    assert caught.value.kind == "header-invalid"
    assert "Meier" not in str(caught.value)


def test_a_header_shows_neither_the_patient_nor_the_file() -> None:
    header = read_header("k", made_dicom.make_object(WORDS), LIMITS)
    assert header.patient_id == "secret"
    assert "secret" not in repr(header)


def test_burned_in_text_is_refused() -> None:
    header = read_header("k", made_dicom.make_object(WORDS, BurnedInAnnotation="YES"), LIMITS)
    with pytest.raises(SliceError, match="burned-in-annotation"):
        check_object(header)


def test_the_study_is_read_from_the_first_bytes_or_not_at_all() -> None:
    data = made_dicom.make_object(np.zeros((400, 400), np.uint16))
    assert read_study_uid(data[:4096]) == made_dicom.STUDY
    assert read_study_uid(b"no dicom") is None
    assert read_study_uid(made_dicom.make_object(WORDS, StudyInstanceUID="")) is None


def test_the_sop_class_may_stand_in_the_file_meta_alone() -> None:
    data = made_dicom.make_dataset(WORDS)
    data.PixelData, data["PixelData"].VR = WORDS.tobytes(), "OW"
    written = made_dicom.write(data, made_dicom.EXPLICIT)
    uid = b"\x08\x00\x16\x00UI\x1a\x00" + b"1.2.840.10008.5.1.4.1.1.2\0"
    emptied = written.replace(uid, b"\x08\x00\x16\x00UI\x00\x00")
    assert len(emptied) < len(written)
    check_object(read_header("k", emptied, LIMITS))


def test_a_ct_image_of_several_frames_has_no_place_for_them() -> None:
    data = made_dicom.make_object(np.zeros((2, 4, 6), np.uint16), NumberOfFrames=2)
    with pytest.raises(SliceError, match="2 frames, but a CT image has one position"):
        read_planes(read_header("k", data, LIMITS))


def test_pydicom_repeats_no_header_text_in_warnings_or_logs(
    caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    words = np.zeros((2, 4, 6), np.uint16)
    data = made_dicom.make_enhanced(words, [[0, 0, 98765.0], [0, 0, 1]])
    damaged = data.replace(b"98765.0", b"secret!")
    planes = read_planes(read_header("k", damaged, LIMITS))
    assert [isinstance(plane, SliceError) for plane in planes] == [True, False]
    assert "secret" not in str(planes[0])
    assert not caplog.records
    assert not recwarn.list
