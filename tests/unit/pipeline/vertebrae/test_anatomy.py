"""The rules of `pipeline.vertebrae.anatomy`, on necks made of ellipsoids."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.vertebrae.anatomy import NamedVertebra, name_vertebrae
from storage_schemas.localizer_card import CLASSES
from storage_schemas.vertebrae import CERVICAL

SIZE, VOXEL_MM = 64, 2.5
STEP = 17.0
Point = tuple[float, float, float]
Blob = tuple[str, Point, Point, float]
"""Class, middle (z, y, x) and half axes in mm, probability."""
RADII = (7.0, 14.0, 16.0)


def grid(*, shear: float = 0.0) -> NDArray[np.float64]:
    """From (z, y, x) of the cube to LPS; its slices may be displaced, as a tilted gantry does."""
    affine = np.zeros((4, 4))
    affine[:3, :3] = VOXEL_MM * np.array([[0, 0, 1], [shear, 1, 0], [1, 0, 0]])
    affine[:, 3] = -80.0, -80.0, -400.0, 1.0
    return affine


def neck(**moved: Point) -> dict[str, Blob]:
    """C7 at a height of 24 mm, C1 six steps above; some may be moved."""
    blobs = {}
    for number, level in enumerate(CERVICAL):
        middle = moved.get(level, (24.0 + STEP * (6 - number), 80.0, 80.0))
        blobs[level] = (level, middle, RADII, 0.9)
    return blobs


def place(level: str) -> Point:
    return neck()[level][1]


def sight(blobs: Sequence[Blob], affine: NDArray[np.float64] | None = None) -> NDArray[np.float32]:
    """What a network would say that sees these; what comes first wins where they meet."""
    at = [VOXEL_MM * axis for axis in np.ogrid[:SIZE, :SIZE, :SIZE]]
    if affine is not None:  # middles are of the patient, whatever the grid's axes are
        at = list(np.einsum("ij,jzyx->izyx", affine[:3, :3], np.indices((SIZE,) * 3)))[::-1]
    names = np.zeros((SIZE,) * 3, np.uint8)
    sure = np.ones((SIZE,) * 3, np.float32)
    for name, middle, radii, probability in reversed(blobs):
        away = sum(((a - m) / r) ** 2 for a, m, r in zip(at, middle, radii, strict=True))
        names[away <= 1] = CLASSES.index(name)
        sure[away <= 1] = probability
    seen = np.stack([np.where(names == number, sure, 0) for number in range(len(CLASSES))])
    seen[0] += 1 - seen.sum(0)
    return seen


def judge(blobs: dict[str, Blob] | Sequence[Blob]) -> tuple[list[str], dict[str, str]]:
    """The levels found, and the kinds of the others."""
    listed = list(blobs.values()) if isinstance(blobs, dict) else blobs
    named, missing = name_vertebrae(sight(listed), grid())
    assert all(reason and len(reason) < 120 for _, reason in missing.values())
    return [v.part.level for v in named], {level: kind for level, (kind, _) in missing.items()}


def without(*levels: str) -> list[str]:
    return [level for level in CERVICAL if level not in levels]


def of(level: str, blobs: Sequence[Blob]) -> NamedVertebra:
    named, missing = name_vertebrae(sight(blobs), grid())
    found = {vertebra.part.level: vertebra for vertebra in named}
    assert level in found, missing[level]
    return found[level]


def cm3(vertebra: NamedVertebra) -> float:
    return float(vertebra.part.inside.sum()) * VOXEL_MM**3 / 1000


def test_a_whole_neck_is_named_with_scores_and_middles() -> None:
    named, missing = name_vertebrae(sight(list(neck().values())), grid())
    assert [vertebra.part.level for vertebra in named] == list(CERVICAL)
    assert missing == {}
    for vertebra in named:
        assert vertebra.score == 0.9
        z, y, x = place(vertebra.part.level)
        np.testing.assert_allclose(vertebra.middle, [x - 80, y - 80, z - 400], atol=0.5)


@pytest.mark.parametrize("degrees", [-50, -25, 25, 50])
def test_a_bent_head_changes_no_name(degrees: float) -> None:
    angle = np.radians(degrees)
    moved = {
        level: (
            80 + (place(level)[0] - 75) * np.cos(angle),
            80 + (place(level)[0] - 75) * np.sin(angle),
            80.0,
        )
        for level in CERVICAL
    }
    small = [(level, middle, (6.0, 9.0, 16.0), 0.9) for level, middle in moved.items()]
    assert judge(small) == (list(CERVICAL), {})


def test_a_curved_neck_is_measured_along_its_curve() -> None:
    turns = np.radians([60, 40, 20, 0, -20, -40])
    steps = np.cumsum([(0.0, 0.0)] + [(STEP * np.cos(a), STEP * np.sin(a)) for a in turns], axis=0)
    blobs = [
        (level, (20 + up, 60 + back, 80.0), (5.0, 7.0, 16.0), 0.9)
        for level, (up, back) in zip(reversed(CERVICAL), steps, strict=True)
    ]
    assert judge(blobs) == (list(CERVICAL), {})


def test_slices_displaced_by_a_tilted_gantry_change_no_name() -> None:
    affine = grid(shear=-0.3)
    shifted = [(n, (z, y - 24, x), r, p) for n, (z, y, x), r, p in neck().values()]
    named, missing = name_vertebrae(sight(shifted, affine), affine)
    assert [vertebra.part.level for vertebra in named] == list(CERVICAL)
    assert missing == {}


OUT, LOST = "vertebra-out-of-order", "vertebra-not-found"


def test_two_swapped_levels_are_both_out_of_order() -> None:
    found, missing = judge(neck(C3=place("C4"), C4=place("C3")))
    assert found == without("C3", "C4")
    assert missing == {"C3": OUT, "C4": OUT}


def test_distant_levels_swapped_are_both_out_of_order() -> None:
    found, missing = judge(neck(C2=place("C6"), C6=place("C2")))
    assert found == without("C2", "C6")
    assert missing == {"C2": OUT, "C6": OUT}


@pytest.mark.parametrize(
    ("level", "middle"),
    [
        ("C1", (8.0, 80.0, 80.0)),  # below C7
        ("C7", (143.0, 80.0, 80.0)),  # above C1
        ("C4", (75.0, 80.0, 20.0)),  # in the shoulder, at its own height
        ("C4", (75.0, 22.0, 80.0)),  # in the throat
        ("C7", (100.0, 40.0, 24.0)),  # in the jaw
    ],
)
def test_a_level_that_strays_is_left_out_alone(level: str, middle: Point) -> None:
    found, missing = judge(neck(**{level: middle}))
    assert found == without(level)
    assert missing == {level: OUT}


def test_a_level_that_is_not_there_is_told_and_the_others_are_kept() -> None:
    found, missing = judge({level: blob for level, blob in neck().items() if level != "C5"})
    assert found == without("C5")
    assert missing == {"C5": LOST}


def halves_of_a_vertebra() -> tuple[Blob, Blob]:
    """C4 by its place; one side of it is called C5."""
    z, y, x = place("C4")
    right, left = ((z, y, x - 9.0), (7.0, 14.0, 8.0)), ((z, y, x + 9.0), (7.0, 14.0, 8.0))
    return ("C4", *right, 0.9), ("C5", *left, 0.9)


def test_of_two_halves_in_one_place_the_one_that_fits_its_neighbours_is_believed() -> None:
    others = [blob for level, blob in neck().items() if level not in ("C4", "C5")]
    found, missing = judge([*halves_of_a_vertebra(), *others])
    assert found == without("C5")
    assert missing == {"C5": OUT}


def test_of_two_unequal_parts_in_one_place_the_greater_is_believed() -> None:
    z, y, x = place("C4")
    parts = [("C5", (z, y, x + 10.0), (7.0, 9.0, 6.0), 0.9), ("C4", (z, y, x), RADII, 0.9)]
    found, missing = judge(parts)
    assert found == ["C4"]
    assert missing["C5"] == OUT


def test_of_two_halves_in_one_place_that_nothing_tells_apart_neither_is_believed() -> None:
    found, missing = judge(halves_of_a_vertebra())
    assert found == []
    assert (missing["C4"], missing["C5"]) == (OUT, OUT)


def test_one_vertebra_with_some_of_another_name_is_believed_of_the_greater() -> None:
    z, y, x = place("C4")
    corner = ("C5", (z, y, x + 12), (7.0, 7.0, 7.0), 0.9)
    found, missing = judge([corner, *[b for level, b in neck().items() if level != "C5"]])
    assert found == without("C5")
    assert missing == {"C5": OUT}


def test_names_that_skip_a_vertebra_are_not_believed() -> None:
    """C1 and C3 a single step apart: one of the two names is wrong, and nothing tells which."""
    blobs = neck(C1=place("C2"))
    del blobs["C2"]
    found, missing = judge(blobs)
    assert found == without("C1", "C2", "C3")
    assert missing == {"C1": OUT, "C2": LOST, "C3": OUT}


def test_a_speck_is_no_vertebra() -> None:
    blobs = neck()
    blobs["C1"] = ("C1", place("C1"), (4.0, 4.0, 4.0), 0.9)
    found, missing = judge(blobs)
    assert found == without("C1")
    assert missing == {"C1": LOST}


def test_what_is_larger_than_any_vertebra_is_none() -> None:
    z, y, x = place("C7")
    blobs = [*list(neck().values())[:6], ("C7", (z - 5, y, x), (14.0, 40.0, 55.0), 0.9)]
    assert judge(blobs) == (without("C7"), {"C7": LOST})


def test_what_is_longer_than_any_vertebra_is_none() -> None:
    """A collar bone has the volume of a vertebra, and not its length."""
    blobs = neck()
    blobs["C7"] = ("C7", place("C7"), (4.0, 5.0, 70.0), 0.9)
    assert judge(blobs) == (without("C7"), {"C7": LOST})


def test_what_the_network_is_unsure_of_is_not_believed() -> None:
    blobs = neck()
    blobs["C6"] = ("C6", place("C6"), RADII, 0.51)
    assert judge(blobs) == (list(CERVICAL), {})
    seen = sight(list(blobs.values()))
    seen[CLASSES.index("C6")][seen[CLASSES.index("C6")] > 0] = 0.4
    seen[0] = np.where(seen[CLASSES.index("C6")] > 0, 0.3, seen[0])
    named, missing = name_vertebrae(seen, grid())
    assert [vertebra.part.level for vertebra in named] == without("C6")
    assert missing["C6"] == (LOST, "the localizer is 40% sure of it, at least 50% is asked")


@pytest.mark.parametrize(("away", "joined"), [(3.0, True), (20.0, False)])
def test_pieces_that_nearly_touch_are_one_body_and_others_are_left(
    away: float, joined: bool
) -> None:
    z, y, x = place("C4")
    body = ("C4", (z, y, x), (7.0, 10.0, 14.0), 0.9)
    process = ("C4", (z, y + 10 + away + 7.5, x), (6.0, 7.0, 6.0), 0.9)
    others = [blob for level, blob in neck().items() if level != "C4"]
    alone, both = of("C4", [body, *others]), of("C4", [body, process, *others])
    assert (cm3(both) > cm3(alone) + 0.5) == joined
    assert (both.part.extent == alone.part.extent) != joined


def test_specks_elsewhere_neither_move_nor_widen_a_level() -> None:
    blobs = list(neck().values())
    specks = [("C3", (z, 130.0, 130.0), (2.0, 2.0, 2.0), 0.9) for z in (10.0, 80.0, 150.0)]
    clean, specked = of("C3", blobs), of("C3", [*blobs, *specks])
    assert specked.part.extent == clean.part.extent
    np.testing.assert_array_equal(specked.middle, clean.middle)


def test_a_vertebra_that_the_scan_cuts_is_kept_by_what_is_left_of_it() -> None:
    lower = {level: (z - 27.0, y, x) for level, (_, (z, y, x), _, _) in neck().items()}
    last = of("C7", list(neck(**lower).values()))
    assert last.cut
    assert cm3(last) < 4
    inner = neck()
    inner["C7"] = ("C7", place("C7"), (3.0, 7.0, 6.0), 0.9)
    assert judge(inner)[1] == {"C7": LOST}
    cut = neck(**lower)
    cut["C7"] = ("C7", (1.0, 80.0, 80.0), (3.0, 8.0, 7.0), 0.9)
    assert of("C7", list(cut.values())).cut


def test_a_single_level_in_sight_is_kept() -> None:
    found, missing = judge([neck()["C2"]])
    assert found == ["C2"]
    assert missing == dict.fromkeys(without("C2"), LOST)


def test_thoracic_vertebrae_are_never_named() -> None:
    thoracic = [("other", (z, 80.0, 80.0), RADII, 0.9) for z in (10.0, 30.0, 50.0, 70.0)]
    assert judge(thoracic) == ([], dict.fromkeys(CERVICAL, LOST))


def test_two_levels_that_contradict_each_other_are_both_left_out() -> None:
    blobs = neck(C3=place("C6"), C6=place("C3"))
    found, missing = judge([blobs["C3"], blobs["C6"]])
    assert found == []
    assert (missing["C3"], missing["C6"]) == (OUT, OUT)
