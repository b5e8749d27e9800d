"""What slices show, by boxes that lie on a vertebra, beside all of them, or nowhere."""

from dataclasses import replace

import pytest

from pipeline.slice_labels import PlacedBoxes, place_boxes
from storage_schemas.annotations import FractureBox
from storage_schemas.geometry import StackGeometry
from storage_schemas.records import (
    CROPPED,
    InputObject,
    StoredSlice,
    StudyRecord,
    StudyVolumeRecord,
    Vertebra,
)
from storage_schemas.study_key import StudyKey

SLICES = 40
LABELS = {"C1": 0, "C2": 1, "C3": 1, "C4": None}
"""C1 fills z 30 to 37, C2 20 to 27, C3 10 to 17, C4 0 to 7."""
TOP = {"C1": 38, "C2": 28, "C3": 18, "C4": 8}


def volume() -> StudyVolumeRecord:
    return StudyVolumeRecord(
        series="1.2.1",
        scanner="",
        geometry=StackGeometry(
            (SLICES, 50, 50),
            tuple((0.0, 0.0, float(z)) for z in range(SLICES)),
            (1.0, 0.0, 0.0),
            (0.0, 1.0, 0.0),
            (1.0, 1.0),
        ),
        transposed=False,
        flipped=(False, False, False),
        slices=tuple(StoredSlice(f"1.2/{100 + z}.dcm", 0, 100 + z) for z in range(SLICES)),
        hu_sha256="",
    )


def record(given: StudyVolumeRecord | None = None) -> StudyRecord:
    boxes = {level: (top - 8, top, 10, 40, 10, 40) for level, top in TOP.items()}
    crops = tuple(
        Vertebra(level, CROPPED, box=(max(0, z0 - 3), z1 + 2, y0, y1, x0, x1), extent=box)
        for level, box in boxes.items()
        for z0, z1, y0, y1, x0, x1 in [box]
    )
    refused = InputObject("1.2/300.dcm", 9, "", "truncated", "cut")
    return StudyRecord(
        study=StudyKey("1.2"),
        patient="1.2",
        outcome="committed",
        config_sha256="",
        input_sha256="",
        inputs=(refused,),
        volume=given or volume(),
        vertebrae=crops,
    )


def box(z: int, x: float = 20.0, number: int | None = None) -> FractureBox:
    return FractureBox(x, 20.0, 8.0, 6.0, 100 + z if number is None else number)


def place(*boxes: FractureBox, given: StudyVolumeRecord | None = None) -> PlacedBoxes:
    return place_boxes(record(given), LABELS, boxes)


def shown(placed: PlacedBoxes, level: str) -> dict[int, int | None]:
    """Whether each slice of a level's extent shows its fracture."""
    return {z: placed.label(level, z, LABELS[level]) for z in range(TOP[level] - 8, TOP[level])}


def test_a_slice_with_a_box_on_its_vertebra_is_1_and_the_others_of_that_vertebra_are_0() -> None:
    placed = place(box(22), box(23))
    assert shown(placed, "C2") == {z: int(z in (22, 23)) for z in range(20, 28)}
    assert placed.unplaced == []


def test_a_fractured_level_without_boxes_is_unlabelled_though_another_level_has_some() -> None:
    placed = place(box(22))
    assert set(shown(placed, "C3").values()) == {None}
    assert set(shown(placed, "C1").values()) == {0}
    assert set(shown(placed, "C4").values()) == {None}


def test_a_study_without_boxes_tells_nothing_of_its_fractured_slices() -> None:
    placed = place()
    assert set(shown(placed, "C2").values()) == {None}
    assert set(shown(placed, "C1").values()) == {0}


def test_a_box_beside_every_vertebra_is_reported_and_its_slice_is_unlabelled() -> None:
    placed = place(box(22), box(25, x=45.0))
    assert shown(placed, "C2") == {z: None if z == 25 else int(z == 22) for z in range(20, 28)}
    (unplaced,) = placed.unplaced
    assert unplaced.key == "1.2/125.dcm"
    assert unplaced.reason == "box of 8 x 6 pixels at x 45, y 20: it lies on no vertebra"


def test_a_box_between_two_vertebrae_leaves_its_slice_unlabelled_in_both_crops() -> None:
    placed = place(box(22), box(12), box(18))
    assert placed.label("C2", 18, 1) is None
    assert placed.label("C3", 18, 1) is None
    assert len(placed.unplaced) == 1


def test_a_box_on_an_intact_vertebra_is_reported_and_its_slice_is_unlabelled() -> None:
    placed = place(box(22), box(33))
    assert shown(placed, "C1") == {z: None if z == 33 else 0 for z in range(30, 38)}
    assert "it lies on C1, which is labelled intact" in placed.unplaced[0].reason
    assert shown(placed, "C2")[21] == 0


def test_a_box_on_a_vertebra_whose_label_is_unknown_is_no_contradiction() -> None:
    placed = place(box(4))
    assert placed.unplaced == []
    assert set(shown(placed, "C4").values()) == {None}


def test_a_box_whose_slice_nobody_knows_leaves_no_slice_of_a_fractured_level_a_negative() -> None:
    placed = place(box(22), box(0, number=900))
    assert shown(placed, "C2") == {z: 1 if z == 22 else None for z in range(20, 28)}
    assert set(shown(placed, "C1").values()) == {0}
    (unplaced,) = placed.unplaced
    assert (unplaced.key, unplaced.reason[-33:]) == ("900", "slice number 900: no slice has it")


def test_a_box_in_a_slice_that_was_refused_tells_nothing_of_the_others() -> None:
    placed = place(box(22), box(0, number=300))
    assert shown(placed, "C2") == {z: int(z == 22) for z in range(20, 28)}
    assert "the slice is not stored" in placed.unplaced[0].reason


@pytest.mark.parametrize("names", ["same", "frames"])
def test_a_slice_number_that_several_slices_have_places_no_box(names: str) -> None:
    given = volume()
    slices = [
        StoredSlice(f"1.2/{z // 20}/{z % 20}.dcm", 0, 500 + z)
        if names == "same"
        else StoredSlice("1.2/all.dcm", z, 7)
        for z in range(SLICES)
    ]
    placed = place(box(0, number=7), given=replace(given, slices=tuple(slices)))
    assert set(shown(placed, "C2").values()) == {None}
    assert "slices have it" in placed.unplaced[0].reason


def test_a_slice_number_is_the_files_name_and_else_the_instance_number() -> None:
    given = volume()
    slices = tuple(replace(origin, key=f"1.2/IM{z}") for z, origin in enumerate(given.slices))
    assert shown(place(box(22), given=replace(given, slices=slices)), "C2")[22] == 1
    reversed_names = tuple(
        replace(origin, key=f"1.2/{139 - z}.dcm") for z, origin in enumerate(given.slices)
    )
    placed = place(box(22), given=replace(given, slices=reversed_names))
    assert placed.of.keys() == {("C3", 17)}
