from typing import Any

import numpy as np
import pytest

from pipeline.dicom.limits import Limits
from pipeline.dicom.selection import NoVolumeError
from pipeline.dicom.volume import read_volume
from tests import made_dicom

WORDS = np.random.default_rng(1).integers(0, 4096, (6, 6, 5), np.uint16)
HU = WORDS.astype(np.int16) - 1024


def named(*objects: bytes) -> list[tuple[str, bytes]]:
    return made_dicom.name_objects(objects)


def slice_at(z: float, image: int = 0, **fields: Any) -> bytes:
    return made_dicom.make_object(WORDS[image], ImagePositionPatient=[0, 0, z], **fields)


def refusals(objects: list[tuple[str, bytes]]) -> list[tuple[str, str]]:
    return [(e.key, e.kind) for e in read_volume(objects).refused]


def test_a_volume_is_plain_contiguous_int16_with_its_origins() -> None:
    volume = read_volume(named(*made_dicom.make_stack(WORDS)[::-1]))
    np.testing.assert_array_equal(volume.hu, HU)
    assert volume.hu.dtype == np.int16
    assert volume.hu.flags.c_contiguous
    assert (volume.study, volume.series) == (made_dicom.STUDY, made_dicom.SERIES)
    first = volume.slices[0]
    assert (first.key, first.frame, first.z, first.instance_number) == ("005.dcm", 0, 0, 1)
    assert (first.position, first.decoder) == ((0, 0, 0), "native")
    assert first.transfer_syntax == made_dicom.EXPLICIT


def test_a_volume_shows_no_patient_but_keeps_the_id_for_hashing() -> None:
    volume = read_volume(named(*made_dicom.make_stack(WORDS)))
    assert volume.patient_id == "secret"
    assert "secret" not in repr(volume)


def test_a_bad_slice_is_refused_and_its_neighbours_live() -> None:
    objects = made_dicom.make_stack(WORDS)
    objects[1] = objects[1][:-9]
    volume = read_volume(named(*objects))
    np.testing.assert_array_equal(volume.hu, HU[[0, 2, 3, 4, 5]])
    assert [(e.key, e.kind) for e in volume.refused] == [("001.dcm", "truncated")]
    assert [s.z for s in volume.slices] == [0, 1, 2, 3, 4]
    assert volume.geometry.classes == ("missing",)


def test_of_two_slices_at_one_position_the_first_by_digest_is_kept() -> None:
    stack = made_dicom.make_stack(WORDS)
    twin = slice_at(1.004, image=3)
    volumes = [read_volume(o) for o in (named(*stack, twin), named(twin, *stack))]
    np.testing.assert_array_equal(volumes[0].hu, volumes[1].hu)
    assert volumes[0].hu.shape == HU.shape
    assert [e.kind for e in volumes[0].refused] == ["duplicate-slice"]
    assert volumes[0].geometry.classes == ("duplicate",)


def test_a_damaged_slice_gives_way_to_its_whole_duplicate() -> None:
    syntax = "1.2.840.10008.1.2.4.80"
    stack = made_dicom.make_stack(WORDS, syntax, BitsStored=12)
    piece = made_dicom.ENCODERS[syntax](WORDS[1], 12)
    for cut in range(2, 8):  # one of these digests sorts before the whole one
        bad = slice_at(1, syntax=syntax, pieces=[piece[:-cut]], BitsStored=12)
        volume = read_volume(named(*stack, bad))
        np.testing.assert_array_equal(volume.hu, HU)
        assert {e.kind for e in volume.refused} <= {"codestream-truncated", "duplicate-slice"}
        assert len(volume.refused) == 1


def test_bits_stored_and_rescale_may_change_from_slice_to_slice() -> None:
    objects = [
        slice_at(0, 0, BitsStored=12),
        slice_at(1, 1, BitsStored=16, RescaleIntercept=-1000),
        slice_at(2, 2, BitsStored=16, RescaleSlope=2),
    ]
    volume = read_volume(named(*objects))
    np.testing.assert_array_equal(volume.hu[1], WORDS[1].astype(int) - 1000)
    np.testing.assert_array_equal(volume.hu[2], WORDS[2].astype(int) * 2 - 1024)


def test_monochrome1_is_not_inverted() -> None:
    stack = made_dicom.make_stack(WORDS, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(read_volume(named(*stack)).hu, HU)


def test_padding_is_air_unless_it_is_asked_for() -> None:
    words = WORDS.copy()
    words[:, 0] = 4000
    stack = named(*made_dicom.make_stack(words, PixelPaddingValue=4000))
    assert (read_volume(stack).hu[:, 0] == -1024).all()
    assert (read_volume(stack, mask_padding=False).hu[:, 0] == 4000 - 1024).all()


def test_an_enhanced_object_is_a_stack_of_its_frames() -> None:
    positions = [[0, 0, z] for z in (2, 0, 3, 1)]
    volume = read_volume(named(made_dicom.make_enhanced(WORDS[:4], positions)))
    np.testing.assert_array_equal(volume.hu, HU[[1, 3, 0, 2]])
    assert [s.frame for s in volume.slices] == [1, 3, 0, 2]
    assert {s.key for s in volume.slices} == {"000.dcm"}


def test_one_bad_frame_is_refused_and_the_others_live() -> None:
    syntax = "1.2.840.10008.1.2.4.80"
    pieces = [made_dicom.ENCODERS[syntax](image, 16) for image in WORDS[:4]]
    pieces[2] = pieces[2][: len(pieces[2]) // 2]
    positions = [[0, 0, z] for z in range(4)]
    data = made_dicom.make_enhanced(WORDS[:4], positions, syntax, pieces=pieces)
    volume = read_volume(named(data))
    np.testing.assert_array_equal(volume.hu, HU[[0, 1, 3]])
    (error,) = volume.refused
    assert (error.key, error.kind) == ("000.dcm", "codestream-truncated")
    assert error.detail.startswith("frame 2: ")


def test_slices_of_another_series_are_unused() -> None:
    objects = [*made_dicom.make_stack(WORDS), slice_at(9, SeriesInstanceUID="1.2.9")]
    volume = read_volume(named(*objects))
    assert not volume.refused
    assert [(entry.key, entry.kind) for entry in volume.unused] == [("006.dcm", "other-series")]


def test_a_slice_of_the_series_that_does_not_fit_the_stack_is_refused() -> None:
    objects = [*made_dicom.make_stack(WORDS), slice_at(9, PixelSpacing=[0.7, 0.7])]
    assert refusals(named(*objects)) == [("006.dcm", "not-in-stack")]


def test_objects_of_two_studies_are_no_study() -> None:
    objects = [*made_dicom.make_stack(WORDS), slice_at(9, StudyInstanceUID="1.2.9")]
    with pytest.raises(NoVolumeError) as caught:
        read_volume(named(*objects))
    assert caught.value.kind == "study-mixed"
    assert len(caught.value.refused) == 7


def test_an_empty_study_uid_mixes_with_nothing() -> None:
    objects = [*made_dicom.make_stack(WORDS), slice_at(9, StudyInstanceUID="")]
    assert read_volume(named(*objects)).study == made_dicom.STUDY


def test_a_study_without_a_stack_says_what_became_of_each_object() -> None:
    with pytest.raises(NoVolumeError) as caught:
        read_volume(named(slice_at(0), b"text"))
    assert caught.value.kind == "one-position"
    assert [(e.key, e.kind) for e in caught.value.refused] == [
        ("000.dcm", "not-in-stack"),
        ("001.dcm", "not-dicom"),
    ]


def test_a_stack_beyond_the_memory_budget_is_refused_before_anything_is_decoded() -> None:
    stack = named(*made_dicom.make_stack(WORDS))
    with pytest.raises(NoVolumeError) as caught:
        read_volume(stack, limits=Limits(volume_bytes=HU.nbytes - 1))
    assert caught.value.kind == "volume-over-budget"
    assert str(HU.nbytes) in caught.value.detail
    assert len(caught.value.refused) == 6
    assert read_volume(stack, limits=Limits(volume_bytes=HU.nbytes)).hu.nbytes == HU.nbytes


def test_a_scanner_is_known_again_and_its_name_is_not() -> None:
    scanners = [
        read_volume(named(*made_dicom.make_stack(WORDS, **fields))).scanner
        for fields in ({}, {"PatientID": "other"}, {"ConvolutionKernel": "SOFT"})
    ]
    assert scanners[0] == scanners[1] != scanners[2]
    assert len(scanners[0]) == 12
    assert int(scanners[0], 16) >= 0
