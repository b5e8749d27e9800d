"""Masks that no spine has, and masks that some have, on columns of ellipsoids."""

from collections.abc import Mapping, Sequence

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.vertebrae.locate import Localization, locate_by_mask
from pipeline.vertebrae.nifti import read_mask
from pipeline.vertebrae.overview import make_overview
from storage_schemas.errors import StudyError
from storage_schemas.geometry import StackGeometry
from storage_schemas.vertebrae import CERVICAL, LEVELS, MASK_LABELS

SPACING = (2.0, 1.6, 1.6)
SHAPE = (90, 70, 70)
TOP_MM, STEP_MM, RADII_MM = 150.0, 17.0, (7.0, 14.0, 16.0)
OUT, LOST = "vertebra-out-of-order", "vertebra-not-found"
Mask = NDArray[np.uint8]


def column(
    values: Sequence[int] = range(1, 8),
    step: float = STEP_MM,
    radii: tuple[float, float, float] = RADII_MM,
    shape: tuple[int, int, int] = SHAPE,
    top: float = TOP_MM,
) -> Mask:
    """Vertebrae of these labels from above, a step apart; 0 leaves one out."""
    z, y, x = (
        mm * axis for mm, axis in zip(SPACING, np.ogrid[tuple(map(slice, shape))], strict=True)
    )
    mask = np.zeros(shape, np.uint8)
    for number, value in enumerate(values):
        away = ((z - top + step * number) / radii[0]) ** 2
        away = away + ((y - 56) / radii[1]) ** 2 + ((x - 56) / radii[2]) ** 2
        mask[away <= 1] = value
    return mask


def geometry(shape: tuple[int, int, int]) -> StackGeometry:
    positions = tuple((0.0, 0.0, SPACING[0] * z) for z in range(shape[0]))
    return StackGeometry(shape, positions, (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), SPACING[1:])


def bone(mask: Mask) -> NDArray[np.int16]:
    return np.where(mask > 0, 400, 30).astype(np.int16)


def nifti(mask: Mask, qform_mm: float | None = None, sform_mm: float = 0.0) -> bytes:
    """The mask, whose sform and qform may be displaced to the patient's front."""
    affine = np.diag([-SPACING[2], -SPACING[1], SPACING[0], 1.0])
    moved = affine.copy()
    moved[1, 3] += sform_mm
    image = nib.Nifti1Image(np.ascontiguousarray(mask.transpose(2, 1, 0)), moved)
    image.set_sform(moved, 1)
    if qform_mm is not None:
        moved = affine.copy()
        moved[1, 3] += qform_mm
        image.set_qform(moved, 1)
    return image.to_bytes()


def locate(
    mask: Mask,
    hu: NDArray[np.int16] | None = None,
    levels: Sequence[str] = CERVICAL,
    convention: str = "rsna",
    data: bytes | None = None,
) -> Localization:
    hu = bone(mask) if hu is None else hu
    place = geometry(mask.shape)
    read = read_mask(data or nifti(mask), "m")
    overview = make_overview(hu, place, size=16)
    return locate_by_mask(hu, place, overview, read, convention, levels)


def judged(mask: Mask, hu: NDArray[np.int16] | None = None) -> tuple[list[str], Mapping[str, str]]:
    """The levels believed, and the kinds of those that the mask holds and that are not."""
    found = locate(mask, hu)
    held = {level for value, level in MASK_LABELS["rsna"].items() if (mask == value).any()}
    refused = {n: kind for n, (kind, _) in found.missing.items() if n in held}
    assert (found.overview_levels is None) == bool(refused)
    return [vertebra.level for vertebra in found.vertebrae], refused


def refusal(mask: Mask, **given: object) -> StudyError:
    with pytest.raises(StudyError) as caught:
        locate(mask, **given)  # type: ignore[arg-type]
    return caught.value


def without(*levels: str) -> list[str]:
    return [level for level in CERVICAL if level not in levels]


def test_a_neck_is_believed() -> None:
    assert judged(column()) == (list(CERVICAL), {})


@pytest.mark.parametrize("share", [0.35, 0.6, 1.4])
def test_necks_of_children_and_giants_are_believed(share: float) -> None:
    radii = tuple(share * radius for radius in RADII_MM)
    shape = (140, 70, 70)
    mask = column(step=share * STEP_MM, radii=radii, shape=shape, top=200.0)  # type: ignore[arg-type]
    assert judged(mask) == (list(CERVICAL), {})


def test_a_spine_with_gaps_in_its_levels_is_believed() -> None:
    assert judged(column([1, 2, 0, 0, 5, 6, 7])) == (without("C3", "C4"), {})


def test_thoracic_and_lumbar_vertebrae_are_believed_at_their_own_steps() -> None:
    radii, shape = (11.0, 22.0, 24.0), (120, 70, 70)
    mask = column([19, 20, 21, 22, 23, 24], 33.0, radii, shape, 200.0)
    found = locate(mask, levels=LEVELS[18:], convention="verse")
    assert [vertebra.level for vertebra in found.vertebrae] == list(LEVELS[18:])
    cervical = refusal(column([1, 2, 3, 4, 5, 6], 33.0, radii, shape, 200.0), levels=CERVICAL)
    assert cervical.kind == OUT


def test_a_mask_numbered_from_below_is_refused() -> None:
    error = refusal(column(range(7, 0, -1)))
    assert error.kind == OUT
    assert "from the feet to the head: C1 lies 102 mm below C7" in error.detail


@pytest.mark.parametrize("values", [range(7, 0, -1), range(1, 8)], ids=["from below", "from above"])
def test_steps_of_50_mm_are_no_necks(values: Sequence[int]) -> None:
    mask = column(values, 50.0, shape=(180, 70, 70), top=340.0)
    assert refusal(mask).kind == OUT


def test_steps_too_short_for_the_vertebrae_are_no_necks() -> None:
    assert refusal(column(step=8.0, radii=(3.9, 16.0, 45.0))).kind == OUT
    assert refusal(column(step=4.0, radii=(1.9, 12.0, 12.0))).kind == OUT


@pytest.mark.parametrize(("upper", "lower"), [(3, 4), (2, 6), (1, 7)])
def test_two_exchanged_levels_are_left_out(upper: int, lower: int) -> None:
    exchange = {upper: lower, lower: upper}
    found, refused = judged(column([exchange.get(n, n) for n in range(1, 8)]))
    assert found == without(f"C{upper}", f"C{lower}")
    assert set(refused.values()) == {OUT}


def test_of_three_levels_two_of_which_are_exchanged_none_is_believed() -> None:
    assert refusal(column([4, 3, 5])).kind == OUT


@pytest.mark.parametrize("values", [[1, 2, 3, 5, 6, 7, 8], [1, 3, 4, 5, 6, 7, 8], [3, 5]])
def test_a_numbering_that_skips_a_level_is_refused(values: Sequence[int]) -> None:
    assert refusal(column(values)).kind == OUT


@pytest.mark.parametrize("values", [[1, 2, 3, 0, 4, 5, 6], [1, 0, 2, 3, 4, 5, 6]])
def test_a_numbering_that_passes_over_a_vertebra_is_refused(values: Sequence[int]) -> None:
    assert refusal(column(values)).kind == OUT


def test_a_level_in_another_place_is_left_out_alone() -> None:
    mask = column([1, 2, 3, 0, 5, 6, 7])
    mask[60:66, 5:20, 5:20] = 4
    assert judged(mask) == (without("C4"), {"C4": OUT})


def test_two_vertebrae_under_one_label_are_no_vertebra() -> None:
    assert judged(column([1, 2, 3, 3, 5, 6, 7])) == (without("C3", "C4"), {"C3": LOST})


def test_a_level_that_exists_twice_is_left_out() -> None:
    mask = column()
    lifted = np.roll(mask == 7, 61, axis=0)
    mask[lifted] = 7
    found = locate(mask)
    assert [vertebra.level for vertebra in found.vertebrae] == without("C7")
    assert "the mask holds it twice: 100% of its size lies" in found.missing["C7"][1]


def test_a_level_with_a_copy_beside_it_is_left_out() -> None:
    mask = column(radii=(7.0, 9.0, 10.0))
    mask |= np.where(np.roll(mask == 4, -25, axis=2), 4, 0).astype(np.uint8)
    assert judged(mask) == (without("C4"), {"C4": LOST})


def test_a_c1_whose_arches_the_mask_lacks_is_kept_whole() -> None:
    mask = column()
    arches = mask[:, :, 30:40]
    arches[arches == 1] = 0
    (found,) = [vertebra for vertebra in locate(mask).vertebrae if vertebra.level == "C1"]
    assert int(found.inside.sum()) == int((mask == 1).sum())


@pytest.mark.parametrize("side", [1, 4])
def test_strays_are_left_out_and_their_level_is_kept(side: int) -> None:
    mask = column()
    whole = locate(mask).vertebrae[3]
    mask[60 : 60 + side, 3 : 3 + side, 3 : 3 + side] = 4
    stray = locate(mask).vertebrae[3]
    assert (stray.level, stray.extent) == ("C4", whole.extent)
    np.testing.assert_array_equal(stray.inside, whole.inside)


def test_a_level_that_a_gap_splits_in_two_is_kept_whole() -> None:
    mask = column()
    split = mask[:, :, 34:37]
    split[split == 4] = 0
    (found,) = [vertebra for vertebra in locate(mask).vertebrae if vertebra.level == "C4"]
    assert int(found.inside.sum()) == int((mask == 4).sum())


def test_a_speck_is_no_vertebra() -> None:
    mask = column([1, 2, 3, 0, 5, 6, 7])
    mask[49:51, 35, 35] = 4
    assert judged(mask) == (without("C4"), {"C4": LOST})


def test_a_level_in_air_is_left_out_and_its_neighbours_on_bone_are_kept() -> None:
    mask = column()
    hu = bone(mask)
    hu[mask == 1] = -900
    assert judged(mask, hu) == (without("C1"), {"C1": LOST})


def test_a_mask_that_holds_no_level_asked_for_says_what_it_holds() -> None:
    other = np.where(column() > 0, 51 - column(), 0).astype(np.uint8)
    assert (
        "its labels are 44, 45, 46, 47, 48, 49, 50, rsna has 1 to 19, totalsegmentator has these"
        in (refusal(other).detail)
    )
    assert "the mask is empty" in refusal(np.zeros(SHAPE, np.uint8)).detail
    assert "its labels are 1, 2" in locate(column([1, 2])).missing["C3"][1]


@pytest.mark.parametrize(
    ("sform_mm", "qform_mm"), [(0.0, 45.0), (45.0, 0.0), (0.0, 900.0), (900.0, 0.0), (0.0, 0.4)]
)
def test_of_two_affines_the_one_that_puts_the_mask_on_bone_is_taken(
    sform_mm: float, qform_mm: float
) -> None:
    mask = column()
    found = locate(mask, data=nifti(mask, qform_mm, sform_mm))
    assert [vertebra.level for vertebra in found.vertebrae] == list(CERVICAL)
    assert [vertebra.mean_hu for vertebra in found.vertebrae] == [400.0] * 7


def test_of_two_affines_that_both_fit_none_is_taken() -> None:
    mask = column()
    hu = np.full(SHAPE, 400, np.int16)
    assert refusal(mask, hu=hu, data=nifti(mask, 4.0)).kind == "mask-affine-ambiguous"


def test_two_affines_neither_of_which_fits_are_refused() -> None:
    mask = column()
    assert refusal(mask, data=nifti(mask, 45.0, -45.0)).kind == "mask-off-bone"
