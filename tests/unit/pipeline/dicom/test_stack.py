import numpy as np
import pytest

from pipeline.dicom.limits import Limits
from pipeline.dicom.selection import read_objects
from pipeline.dicom.series.parts import find_parts
from pipeline.dicom.series.preference import SeriesRule, choose_part
from pipeline.dicom.stack import Orientation, Stack, classify, find_orientation
from storage_schemas.geometry import StackGeometry
from tests import made_dicom

WORDS = np.zeros((4, 3), np.uint16)


def stack_of(objects: list[bytes]) -> Stack | None:
    found = read_objects(made_dicom.name_objects(objects), Limits())
    assert not found.refused
    chosen, _ = choose_part(find_parts(found.frames), SeriesRule())
    return chosen.stack if chosen else None


def series(uid: str, count: int, first: float = 0, **fields: object) -> list[bytes]:
    return [
        made_dicom.make_object(
            WORDS, SeriesInstanceUID=uid, ImagePositionPatient=[0, 0, first + z], **fields
        )
        for z in range(count)
    ]


def geometry_of(offsets: list[float], shift: float = 0.0) -> StackGeometry:
    positions = tuple((0.0, shift * z, z) for z in offsets)
    return StackGeometry((len(offsets), 2, 2), positions, (1, 0, 0), (0, 1, 0), (1, 1))


@pytest.mark.parametrize(
    ("row", "column", "transposed", "flipped"),
    [
        ((1, 0, 0), (0, 1, 0), False, (False, False, False)),
        ((-1, 0, 0), (0, 1, 0), False, (True, False, True)),
        ((1, 0, 0), (0, -1, 0), False, (True, True, False)),
        ((-1, 0, 0), (0, -1, 0), False, (False, True, True)),
        ((0, 1, 0), (1, 0, 0), True, (True, False, False)),
        ((0, -1, 0), (1, 0, 0), True, (False, True, False)),
        ((1, 0, 0), (0, 0.9483237, -0.3173047), False, (False, False, False)),
    ],
)
def test_near_axial_slices_become_canonical_by_whole_axes(
    row: tuple[float, float, float],
    column: tuple[float, float, float],
    transposed: bool,
    flipped: tuple[bool, bool, bool],
) -> None:
    assert find_orientation(row, column) == Orientation(transposed, flipped)


@pytest.mark.parametrize(
    ("row", "column"),
    [((0, 1, 0), (0, 0, -1)), ((1, 0, 0), (0, 0, -1)), ((1, 0, 0), (0, 0.6, 0.8))],
)
def test_sagittal_and_coronal_slices_are_not_axial(
    row: tuple[float, float, float], column: tuple[float, float, float]
) -> None:
    assert find_orientation(row, column) is None


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("flip_y", [False, True])
@pytest.mark.parametrize("flip_x", [False, True])
def test_a_rectangle_moves_with_the_pixels_in_it(
    transposed: bool, flip_y: bool, flip_x: bool
) -> None:
    image = np.zeros((7, 5), np.int16)
    image[4:6, 1:4] = 1
    turn = Orientation(transposed, (False, flip_y, flip_x))
    x, y, width, height = turn.map_rectangle((1, 4, 3, 2), image.shape)
    turned = turn.turn(image)
    assert turned[int(y) : int(y + height), int(x) : int(x + width)].sum() == image.sum()


@pytest.mark.parametrize(
    ("offsets", "classes"),
    [
        ([0, 1, 2, 3, 4], ("regular",)),
        ([0, 1.02, 2, 3, 4.04], ("regular",)),
        ([0, 1, 2, 3.1, 4], ("uneven",)),
        ([0, 1, 2, 4, 5], ("missing",)),
        ([0, 1, 2, 7, 8, 9.4], ("uneven", "missing")),
        ([0, 1, 2, 4, 6], ("uneven",)),
        ([0, 7], ("regular",)),
    ],
)
def test_gaps_name_the_class_of_a_stack(offsets: list[float], classes: tuple[str, ...]) -> None:
    assert classify(geometry_of(offsets), duplicates=False) == classes


def test_a_stack_whose_slices_move_sideways_is_tilted() -> None:
    assert classify(geometry_of([0, 1, 2], shift=0.005), duplicates=False) == ("regular",)
    assert classify(geometry_of([0, 1, 2], shift=0.02), duplicates=True) == ("duplicate", "tilted")


@pytest.mark.parametrize(("mm", "classes"), [(0.4, ("regular",)), (0.6, ("uneven",))])
def test_a_slice_half_a_pixel_beside_the_others_makes_a_stack_uneven(
    mm: float, classes: tuple[str, ...]
) -> None:
    positions = ((0, 0, 0), (0, 0, 1), (0, mm, 2), (0, 0, 3))
    geometry = StackGeometry((4, 2, 2), positions, (1, 0, 0), (0, 1, 0), (1, 1))
    assert classify(geometry, duplicates=False) == classes


def test_the_series_with_the_most_slices_is_the_stack() -> None:
    stack = stack_of(series("1.1", 3) + series("1.2", 4))
    assert stack is not None
    assert stack.places[0][0].header.series == "1.2"


def test_of_two_equally_long_series_the_lower_uid_is_the_stack() -> None:
    stack = stack_of(series("1.2", 3) + series("1.1", 3))
    assert stack is not None
    assert stack.places[0][0].header.series == "1.1"


def test_more_frames_at_the_same_positions_do_not_make_a_longer_stack() -> None:
    stack = stack_of(series("1.1", 3) * 3 + series("1.2", 4))
    assert stack is not None
    assert stack.places[0][0].header.series == "1.2"


def test_a_series_is_divided_by_size_spacing_and_orientation() -> None:
    wide = np.zeros((4, 5), np.uint16)
    others = [
        made_dicom.make_object(wide, SeriesInstanceUID="1.1", ImagePositionPatient=[0, 0, 50]),
        *series("1.1", 2, 60, PixelSpacing=[0.6, 0.6]),
        *series("1.1", 2, 70, ImageOrientationPatient=[1, 0, 0, 0, 0.995, 0.0998749]),
    ]
    stack = stack_of(series("1.1", 3) + others)
    assert stack is not None
    assert stack.shape == (3, 4, 3)


def test_directions_that_differ_by_rounding_are_one_stack() -> None:
    tilted = [[1, 0, 0, 0, 0.9483237, -0.3173047], [1, 0, 0, 0, 0.94832, -0.31731]]
    objects = [
        made_dicom.make_object(WORDS, ImagePositionPatient=[0, 0, z], ImageOrientationPatient=o)
        for z, o in enumerate([*tilted, tilted[0]])
    ]
    stack = stack_of(objects)
    assert stack is not None
    assert len(stack.places) == 3
    assert stack.column_direction == (0, 0.9483237, -0.3173047)


def test_localizers_are_no_stack_even_where_they_are_axial() -> None:
    assert stack_of(series("1.1", 3, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])) is None


def test_one_slice_is_no_stack() -> None:
    assert stack_of(series("1.1", 1)) is None
    assert stack_of(series("1.1", 1) + series("1.1", 1, first=0.005)) is None
