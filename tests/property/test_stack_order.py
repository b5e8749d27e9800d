"""A volume depends on what its slices say of themselves, and on nothing else."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.dicom.selection import NoVolumeError
from pipeline.dicom.volume import StudyVolume, read_volume
from tests import made_dicom

SLICES, ROWS, COLUMNS = 5, 7, 6
WORDS = np.random.default_rng(0).integers(0, 4096, (SLICES, ROWS, COLUMNS), np.uint16)
SPACING = (0.5, 0.4)  # between rows, between columns
REFERENCE = read_volume(made_dicom.name_objects(made_dicom.make_stack(WORDS)))

names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)


def assert_same(volume: StudyVolume, other: StudyVolume) -> None:
    np.testing.assert_array_equal(volume.hu, other.hu)
    assert volume.geometry == other.geometry
    assert [s.position for s in volume.slices] == [s.position for s in other.slices]
    assert [e.kind for e in volume.refused] == [e.kind for e in other.refused]


@settings(max_examples=60, deadline=None)
@given(
    order=st.permutations(range(SLICES)),
    keys=st.lists(names, min_size=SLICES, max_size=SLICES, unique=True),
    numbers=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=SLICES, max_size=SLICES),
)
def test_order_names_and_instance_numbers_change_nothing(
    order: list[int], keys: list[str], numbers: list[int]
) -> None:
    objects = [
        made_dicom.make_object(
            WORDS[z], ImagePositionPatient=[0, 0, z], InstanceNumber=numbers[z], SliceLocation=-z
        )
        for z in order
    ]
    volume = read_volume(zip(keys, objects, strict=True))
    assert_same(volume, REFERENCE)
    assert [s.key for s in volume.slices] == [keys[order.index(z)] for z in range(SLICES)]
    assert [s.instance_number for s in volume.slices] == numbers


def unit(angles: tuple[float, float, float]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """A rotation matrix from small angles about x, y and z; its columns are x, y, z directions."""
    a, b, c = angles
    about_x = [[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]]
    about_y = [[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]]
    about_z = [[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]]
    return np.asarray(about_x) @ about_y @ about_z


small_angles = st.tuples(*[st.floats(-0.4, 0.4)] * 3)


@settings(max_examples=60, deadline=None)
@given(
    transposed=st.booleans(),
    flip_y=st.booleans(),
    flip_x=st.booleans(),
    angles=small_angles,
    steps=st.lists(st.floats(0.3, 3), min_size=SLICES, max_size=SLICES),
    order=st.permutations(range(SLICES)),
)
def test_any_axis_flipped_storage_of_a_volume_is_the_same_canonical_volume(
    transposed: bool,
    flip_y: bool,
    flip_x: bool,
    angles: tuple[float, float, float],
    steps: list[float],
    order: list[int],
) -> None:
    # Written as decimal strings, so the directions are rounded first.
    left, back, head = np.round(unit(angles).T, 9)
    corners = [np.round(head * float(sum(steps[: z + 1])), 6) for z in range(SLICES)]
    objects = []
    for z in order:
        image, position, row, column = WORDS[z], corners[z], left, back
        row_step, column_step = SPACING[1], SPACING[0]  # along x, along y
        if flip_x:
            image, position, row = image[:, ::-1], position + row * row_step * (COLUMNS - 1), -row
        if flip_y:
            image, position = image[::-1], position + column * column_step * (ROWS - 1)
            column = -column
        spacing = [column_step, row_step]
        if transposed:
            image, row, column, spacing = image.T, column, row, spacing[::-1]
        fields = {
            "ImagePositionPatient": [f"{v:.9f}"[:16] for v in position],
            "ImageOrientationPatient": [f"{v:.9f}" for v in (*row, *column)],
            "PixelSpacing": spacing,
        }
        objects.append(made_dicom.make_object(np.ascontiguousarray(image), **fields))
    volume = read_volume(made_dicom.name_objects(objects))
    np.testing.assert_array_equal(volume.hu, WORDS.astype(np.int16) - 1024)
    assert volume.geometry.pixel_spacing == SPACING
    np.testing.assert_allclose(volume.geometry.positions, corners, atol=1e-5)
    np.testing.assert_allclose(volume.geometry.row_direction, left, atol=1e-8)
    np.testing.assert_allclose(volume.geometry.column_direction, back, atol=1e-8)
    assert volume.orientation.transposed == transposed
    assert volume.orientation.flipped[1:] == (flip_y, flip_x)
    # Twice mirrored is not mirrored: the stored normal tells of an odd number of flips.
    assert volume.orientation.flipped[0] == (flip_y ^ flip_x ^ transposed)


def slice_at(z: float, **fields: Any) -> bytes:
    return made_dicom.make_object(WORDS[0], ImagePositionPatient=[0, 0, z], **fields)


STRANGERS = {
    "text": lambda z: b"no dicom at all",
    "nothing": lambda z: b"",
    "cut": lambda z: slice_at(z)[:-9],
    "cut header": lambda z: slice_at(z)[:400],
    "MR": lambda z: slice_at(z, SOPClassUID="1.2.840.10008.5.1.4.1.1.4"),
    "localizer": lambda z: slice_at(z, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]),
    "sagittal": lambda z: slice_at(z, ImageOrientationPatient=[0, 1, 0, 0, 0, -1]),
    "other series": lambda z: slice_at(z, SeriesInstanceUID="1.2.9"),
    "other spacing": lambda z: slice_at(z, PixelSpacing=[0.7, 0.7]),
    "no position": lambda z: made_dicom.make_object(WORDS[0], ImagePositionPatient=None),
    "other study": lambda z: slice_at(z, StudyInstanceUID="1.2.8"),
    "half a slope": lambda z: slice_at(z, RescaleSlope=0.5),
    "too bright": lambda z: slice_at(z, RescaleIntercept=32000),
    "duplicate": lambda z: slice_at(round(z)),
    "enhanced": lambda z: made_dicom.make_enhanced(WORDS[:2], [[0, 0, z], [0, 0, z + 1]]),
    "enhanced without frames": lambda z: slice_at(
        z, SOPClassUID="1.2.840.10008.5.1.4.1.1.2.1", NumberOfFrames=3
    ),
    "slice": slice_at,
}


@settings(max_examples=80, deadline=None)
@given(
    kinds=st.lists(
        st.tuples(st.sampled_from(sorted(STRANGERS)), st.floats(-9, 9)), min_size=1, max_size=9
    ),
    whole=st.booleans(),
)
def test_every_object_that_goes_in_comes_out_as_a_slice_as_refused_or_as_unused(
    kinds: list[tuple[str, float]], whole: bool
) -> None:
    objects = [STRANGERS[kind](round(z, 3)) for kind, z in kinds]
    objects += made_dicom.make_stack(WORDS) if whole else []
    named = made_dicom.name_objects(objects)
    frames = [2 if b"1.2.840.10008.5.1.4.1.1.2.1" in data[:600] else 1 for data in objects]
    try:
        volume = read_volume(named)
        slices, refused = volume.slices, (*volume.refused, *volume.unused)
        assert [s.z for s in slices] == list(range(len(volume.hu)))
    except NoVolumeError as error:
        slices, refused = (), (*error.refused, *error.unused)
    counted = [s.key for s in slices] + [e.key for e in refused]
    assert set(counted) == {key for key, _ in named}
    for (key, _), most in zip(named, frames, strict=True):
        assert 1 <= counted.count(key) <= most
    assert len({(s.key, s.frame) for s in slices}) == len(slices)


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_any_number_of_threads_gives_the_same_volume(threads: int) -> None:
    objects = made_dicom.name_objects(made_dicom.make_stack(WORDS))
    assert_same(read_volume(objects, threads=threads), REFERENCE)
