"""The rules of `pipeline.vertebrae.anatomy`, on cervical spines made of ellipsoids."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.vertebrae.anatomy import FoundVertebra, find_vertebrae
from storage_schemas.localizer_card import CLASSES, LOCALIZED_LEVELS

SIZE, VOXEL_MM = 64, 2.5
STEP = 17.0
Point = tuple[float, float, float]
Blob = tuple[str, Point, Point, float]
"""Class, centre (z, y, x) and half axes in mm, probability."""
RADII = (7.0, 14.0, 16.0)


def grid(*, shear: float = 0.0) -> NDArray[np.float64]:
    """Affine from (z, y, x) of the cube to LPS, sheared as with a tilted gantry."""
    affine = np.zeros((4, 4))
    affine[:3, :3] = VOXEL_MM * np.array([[0, 0, 1], [shear, 1, 0], [1, 0, 0]])
    affine[:, 3] = -80.0, -80.0, -400.0, 1.0
    return affine


def spine(**moved: Point) -> dict[str, Blob]:
    """C7 at a height of 24 mm, and C1 six steps above; some vertebrae may be moved."""
    blobs = {}
    for number, level in enumerate(LOCALIZED_LEVELS):
        centre = moved.get(level, (24.0 + STEP * (6 - number), 80.0, 80.0))
        blobs[level] = (level, centre, RADII, 0.9)
    return blobs


def position(level: str) -> Point:
    return spine()[level][1]


def probabilities(
    blobs: Sequence[Blob], affine: NDArray[np.float64] | None = None
) -> NDArray[np.float32]:
    """Output of a network for these ellipsoids; the first of two wins where they overlap."""
    at = [VOXEL_MM * axis for axis in np.ogrid[:SIZE, :SIZE, :SIZE]]
    if affine is not None:  # centres are in patient coordinates, on any grid
        at = list(np.einsum("ij,jzyx->izyx", affine[:3, :3], np.indices((SIZE,) * 3)))[::-1]
    names = np.zeros((SIZE,) * 3, np.uint8)
    sure = np.ones((SIZE,) * 3, np.float32)
    for name, centre, radii, probability in reversed(blobs):
        away = sum(((a - m) / r) ** 2 for a, m, r in zip(at, centre, radii, strict=True))
        names[away <= 1] = CLASSES.index(name)
        sure[away <= 1] = probability
    output = np.stack([np.where(names == number, sure, 0) for number in range(len(CLASSES))])
    output[0] += 1 - output.sum(0)
    return output


def levels_of(blobs: dict[str, Blob] | Sequence[Blob]) -> tuple[list[str], dict[str, str]]:
    """Accepted levels, and the kinds of the others."""
    listed = list(blobs.values()) if isinstance(blobs, dict) else blobs
    vertebrae, missing = find_vertebrae(probabilities(listed), grid())
    assert all(reason and len(reason) < 120 for _, reason in missing.values())
    return [v.part.level for v in vertebrae], {level: kind for level, (kind, _) in missing.items()}


def all_but(*levels: str) -> list[str]:
    return [level for level in LOCALIZED_LEVELS if level not in levels]


def one(level: str, blobs: Sequence[Blob]) -> FoundVertebra:
    vertebrae, missing = find_vertebrae(probabilities(blobs), grid())
    found = {vertebra.part.level: vertebra for vertebra in vertebrae}
    assert level in found, missing[level]
    return found[level]


def cm3(vertebra: FoundVertebra) -> float:
    return float(vertebra.part.inside.sum()) * VOXEL_MM**3 / 1000


def test_a_complete_cervical_spine_is_found_with_scores_and_centres() -> None:
    vertebrae, missing = find_vertebrae(probabilities(list(spine().values())), grid())
    assert [vertebra.part.level for vertebra in vertebrae] == list(LOCALIZED_LEVELS)
    assert missing == {}
    for vertebra in vertebrae:
        assert vertebra.score == 0.9
        z, y, x = position(vertebra.part.level)
        np.testing.assert_allclose(vertebra.centre, [x - 80, y - 80, z - 400], atol=0.5)


@pytest.mark.parametrize("degrees", [-50, -25, 25, 50])
def test_a_flexed_neck_does_not_change_the_levels(degrees: float) -> None:
    angle = np.radians(degrees)
    moved = {
        level: (
            80 + (position(level)[0] - 75) * np.cos(angle),
            80 + (position(level)[0] - 75) * np.sin(angle),
            80.0,
        )
        for level in LOCALIZED_LEVELS
    }
    small = [(level, centre, (6.0, 9.0, 16.0), 0.9) for level, centre in moved.items()]
    assert levels_of(small) == (list(LOCALIZED_LEVELS), {})


def test_distances_are_measured_along_a_curved_spine() -> None:
    turns = np.radians([60, 40, 20, 0, -20, -40])
    steps = np.cumsum([(0.0, 0.0)] + [(STEP * np.cos(a), STEP * np.sin(a)) for a in turns], axis=0)
    blobs = [
        (level, (20 + up, 60 + back, 80.0), (5.0, 7.0, 16.0), 0.9)
        for level, (up, back) in zip(reversed(LOCALIZED_LEVELS), steps, strict=True)
    ]
    assert levels_of(blobs) == (list(LOCALIZED_LEVELS), {})


def test_a_tilted_gantry_does_not_change_the_levels() -> None:
    affine = grid(shear=-0.3)
    shifted = [(n, (z, y - 24, x), r, p) for n, (z, y, x), r, p in spine().values()]
    vertebrae, missing = find_vertebrae(probabilities(shifted, affine), affine)
    assert [vertebra.part.level for vertebra in vertebrae] == list(LOCALIZED_LEVELS)
    assert missing == {}


OUT_OF_ORDER, NOT_FOUND = "vertebra-out-of-order", "vertebra-not-found"


def test_two_swapped_levels_are_both_out_of_order() -> None:
    found, missing = levels_of(spine(C3=position("C4"), C4=position("C3")))
    assert found == all_but("C3", "C4")
    assert missing == {"C3": OUT_OF_ORDER, "C4": OUT_OF_ORDER}


def test_distant_levels_swapped_are_both_out_of_order() -> None:
    found, missing = levels_of(spine(C2=position("C6"), C6=position("C2")))
    assert found == all_but("C2", "C6")
    assert missing == {"C2": OUT_OF_ORDER, "C6": OUT_OF_ORDER}


@pytest.mark.parametrize(
    ("level", "centre"),
    [
        ("C1", (8.0, 80.0, 80.0)),  # below C7
        ("C7", (143.0, 80.0, 80.0)),  # above C1
        ("C4", (75.0, 80.0, 20.0)),  # in the shoulder, at its own height
        ("C4", (75.0, 22.0, 80.0)),  # in the throat
        ("C7", (100.0, 40.0, 24.0)),  # in the jaw
    ],
)
def test_only_a_misplaced_level_is_rejected(level: str, centre: Point) -> None:
    found, missing = levels_of(spine(**{level: centre}))
    assert found == all_but(level)
    assert missing == {level: OUT_OF_ORDER}


def test_an_absent_level_is_reported_and_the_others_are_accepted() -> None:
    found, missing = levels_of({level: blob for level, blob in spine().items() if level != "C5"})
    assert found == all_but("C5")
    assert missing == {"C5": NOT_FOUND}


def halves_of_a_vertebra() -> tuple[Blob, Blob]:
    """A vertebra in the place of C4, one side of which is labelled C5."""
    z, y, x = position("C4")
    right, left = ((z, y, x - 9.0), (7.0, 14.0, 8.0)), ((z, y, x + 9.0), (7.0, 14.0, 8.0))
    return ("C4", *right, 0.9), ("C5", *left, 0.9)


def test_of_two_halves_in_one_place_the_one_that_fits_its_neighbours_is_accepted() -> None:
    others = [blob for level, blob in spine().items() if level not in ("C4", "C5")]
    found, missing = levels_of([*halves_of_a_vertebra(), *others])
    assert found == all_but("C5")
    assert missing == {"C5": OUT_OF_ORDER}


def test_of_two_unequal_parts_in_one_place_the_larger_one_is_accepted() -> None:
    z, y, x = position("C4")
    parts = [("C5", (z, y, x + 10.0), (7.0, 9.0, 6.0), 0.9), ("C4", (z, y, x), RADII, 0.9)]
    found, missing = levels_of(parts)
    assert found == ["C4"]
    assert missing["C5"] == OUT_OF_ORDER


def test_two_equal_halves_in_one_place_are_both_rejected() -> None:
    found, missing = levels_of(halves_of_a_vertebra())
    assert found == []
    assert (missing["C4"], missing["C5"]) == (OUT_OF_ORDER, OUT_OF_ORDER)


def test_a_vertebra_with_a_corner_of_another_label_has_the_label_of_the_larger_part() -> None:
    z, y, x = position("C4")
    corner = ("C5", (z, y, x + 12), (7.0, 7.0, 7.0), 0.9)
    found, missing = levels_of([corner, *[b for level, b in spine().items() if level != "C5"]])
    assert found == all_but("C5")
    assert missing == {"C5": OUT_OF_ORDER}


def test_levels_that_skip_a_vertebra_are_rejected() -> None:
    """C1 and C3 are one step apart: one of the two labels is wrong, and it is unknown which."""
    blobs = spine(C1=position("C2"))
    del blobs["C2"]
    found, missing = levels_of(blobs)
    assert found == all_but("C1", "C2", "C3")
    assert missing == {"C1": OUT_OF_ORDER, "C2": NOT_FOUND, "C3": OUT_OF_ORDER}


def test_a_body_smaller_than_any_vertebra_is_rejected() -> None:
    blobs = spine()
    blobs["C1"] = ("C1", position("C1"), (4.0, 4.0, 4.0), 0.9)
    found, missing = levels_of(blobs)
    assert found == all_but("C1")
    assert missing == {"C1": NOT_FOUND}


def test_a_body_larger_than_any_vertebra_is_rejected() -> None:
    z, y, x = position("C7")
    blobs = [*list(spine().values())[:6], ("C7", (z - 5, y, x), (14.0, 40.0, 55.0), 0.9)]
    assert levels_of(blobs) == (all_but("C7"), {"C7": NOT_FOUND})


def test_a_body_longer_than_any_vertebra_is_rejected() -> None:
    """A clavicle has the volume of a vertebra, but not its length."""
    blobs = spine()
    blobs["C7"] = ("C7", position("C7"), (4.0, 5.0, 70.0), 0.9)
    assert levels_of(blobs) == (all_but("C7"), {"C7": NOT_FOUND})


def test_a_vertebra_of_low_probability_is_rejected() -> None:
    blobs = spine()
    blobs["C6"] = ("C6", position("C6"), RADII, 0.51)
    assert levels_of(blobs) == (list(LOCALIZED_LEVELS), {})
    output = probabilities(list(blobs.values()))
    output[CLASSES.index("C6")][output[CLASSES.index("C6")] > 0] = 0.4
    output[0] = np.where(output[CLASSES.index("C6")] > 0, 0.3, output[0])
    vertebrae, missing = find_vertebrae(output, grid())
    assert [vertebra.part.level for vertebra in vertebrae] == all_but("C6")
    assert missing["C6"] == (NOT_FOUND, "the localizer is 40% sure of it, at least 50% is asked")


@pytest.mark.parametrize(("away", "joined"), [(3.0, True), (20.0, False)])
def test_only_components_that_nearly_touch_are_one_body(away: float, joined: bool) -> None:
    z, y, x = position("C4")
    body = ("C4", (z, y, x), (7.0, 10.0, 14.0), 0.9)
    process = ("C4", (z, y + 10 + away + 7.5, x), (6.0, 7.0, 6.0), 0.9)
    others = [blob for level, blob in spine().items() if level != "C4"]
    alone, both = one("C4", [body, *others]), one("C4", [body, process, *others])
    assert (cm3(both) > cm3(alone) + 0.5) == joined
    assert (both.part.extent == alone.part.extent) != joined


def test_specks_far_away_do_not_change_a_level() -> None:
    blobs = list(spine().values())
    specks = [("C3", (z, 130.0, 130.0), (2.0, 2.0, 2.0), 0.9) for z in (10.0, 80.0, 150.0)]
    clean, specked = one("C3", blobs), one("C3", [*blobs, *specks])
    assert specked.part.extent == clean.part.extent
    np.testing.assert_array_equal(specked.centre, clean.centre)


def test_a_truncated_vertebra_may_be_smaller() -> None:
    lower = {level: (z - 27.0, y, x) for level, (_, (z, y, x), _, _) in spine().items()}
    last = one("C7", list(spine(**lower).values()))
    assert last.truncated
    assert cm3(last) < 4
    inner = spine()
    inner["C7"] = ("C7", position("C7"), (3.0, 7.0, 6.0), 0.9)
    assert levels_of(inner)[1] == {"C7": NOT_FOUND}
    cut = spine(**lower)
    cut["C7"] = ("C7", (1.0, 80.0, 80.0), (3.0, 8.0, 7.0), 0.9)
    assert one("C7", list(cut.values())).truncated


def test_a_single_level_is_accepted() -> None:
    found, missing = levels_of([spine()["C2"]])
    assert found == ["C2"]
    assert missing == dict.fromkeys(all_but("C2"), NOT_FOUND)


def test_thoracic_vertebrae_are_never_found() -> None:
    thoracic = [("other", (z, 80.0, 80.0), RADII, 0.9) for z in (10.0, 30.0, 50.0, 70.0)]
    assert levels_of(thoracic) == ([], dict.fromkeys(LOCALIZED_LEVELS, NOT_FOUND))


def test_two_levels_that_contradict_each_other_are_both_rejected() -> None:
    blobs = spine(C3=position("C6"), C6=position("C3"))
    found, missing = levels_of([blobs["C3"], blobs["C6"]])
    assert found == []
    assert (missing["C3"], missing["C6"]) == (OUT_OF_ORDER, OUT_OF_ORDER)
