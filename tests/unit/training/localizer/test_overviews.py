"""Training data of a localizer: studies, folds, and the augmentation of cubes with their labels."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from storage_schemas.errors import StoreError, UsageError
from storage_schemas.store import OVERVIEW_LEVELS
from tests.overviews import SPACING_MM, make_masked_store, make_overview
from training.localizer.config import CubeAugmentConfig
from training.localizer.overviews import (
    MaskedStudy,
    assign_folds,
    level_classes,
    open_overviews,
    read_masked,
    sample_transforms,
    shrink_classes,
    transform_cubes,
    vary_hu,
)

STILL = CubeAugmentConfig(rotate_degrees=0, shift_mm=0, scale=0, gain=0, offset_hu=0, noise_hu=0)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_only_studies_with_a_mask_are_trained_on(tmp_path: Path) -> None:
    store = make_masked_store(tmp_path, 3, unmasked=2)
    assert [study.study for study in read_masked(store)] == ["1.2.1", "1.2.2", "1.2.3"]


def test_a_store_without_masks_is_refused_with_what_to_do(tmp_path: Path) -> None:
    store = make_masked_store(tmp_path, 0, unmasked=2)
    with pytest.raises(UsageError, match="--masks") as refused:
        read_masked(store)
    assert refused.value.kind == "labels-missing"


def test_no_patient_is_in_two_folds_and_each_fold_has_each_scanner() -> None:
    studies = [
        MaskedStudy(f"1.{number}", f"patient {number // 2}", f"scanner {number // 2 % 3}")
        for number in range(60)
    ]
    folds = assign_folds(studies, 5, seed=3)
    assert sorted(study for fold in folds for study in fold) == sorted(s.study for s in studies)
    of = {study.study: study for study in studies}
    patients = [{of[study].patient for study in fold} for fold in folds]
    assert sum(map(len, patients)) == len(set.union(*patients)) == 30
    for fold in folds:
        assert {of[study].scanner for study in fold} == {"scanner 0", "scanner 1", "scanner 2"}
    assert assign_folds(studies[::-1], 5, seed=3) == folds
    assert assign_folds(studies, 5, seed=4) != folds


def test_fewer_patients_than_folds_are_refused() -> None:
    studies = [MaskedStudy(f"1.{number}", "the same patient", "") for number in range(9)]
    with pytest.raises(UsageError, match="1 patients") as refused:
        assign_folds(studies, 2, seed=0)
    assert refused.value.kind == "cohort-too-small"


def test_overviews_are_read_as_stored_with_their_spacing(tmp_path: Path) -> None:
    store = make_masked_store(tmp_path / "store", 2)
    with open_overviews(store, ["1.2.2", "1.2.1"], 32, tmp_path) as overviews:
        hu, levels = make_overview(1)
        assert (overviews.hu[0] == hu).all()
        assert (overviews.classes[0] == levels).all()
        assert overviews.spacing_mm.tolist() == [list(SPACING_MM)] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_missing_mask_stops_with_its_name(tmp_path: Path) -> None:
    store = make_masked_store(tmp_path / "store", 2)
    store.objects.remove(f"volumes.zarr/1.2.2/{OVERVIEW_LEVELS}")
    with (
        pytest.raises(StoreError, match=r"1\.2\.2/overview_levels"),
        open_overviews(store, ["1.2.1", "1.2.2"], 32, tmp_path),
    ):
        pass


def test_an_overview_that_does_not_divide_is_refused(tmp_path: Path) -> None:
    store = make_masked_store(tmp_path / "store", 1)
    with pytest.raises(StoreError) as refused, open_overviews(store, ["1.2.1"], 64, tmp_path):
        pass
    assert refused.value.kind == "array-mismatch"


def test_all_levels_below_c7_are_one_class() -> None:
    assert level_classes(np.arange(25, dtype=np.uint8)).tolist() == [*range(8), *[8] * 17]


def test_shrinking_takes_the_commonest_class() -> None:
    classes = np.zeros((4, 4, 4), np.uint8)
    classes[:2, :2, 2:] = 3
    classes[0, :2, 2:] = 7
    classes[0, 0, 2] = 3
    assert shrink_classes(classes, 2).tolist() == [[[0, 3], [0, 0]], [[0, 0], [0, 0]]]


def as_tensors(*cubes: NDArray) -> list[torch.Tensor]:
    return [torch.from_numpy(cube.copy())[None, None] for cube in cubes]


def test_a_transform_without_deviation_only_mirrors_left_and_right() -> None:
    hu, levels = make_overview(0)
    voxels, classes = as_tensors(hu.astype(np.float32), levels)
    mirrored = 0
    for seed in range(8):
        transforms = sample_transforms(torch.full((1, 3), 100.0), STILL, seeded(seed))
        slice_labels, moved = transform_cubes(voxels, classes, transforms)
        found = slice_labels[0, 0].numpy(), moved[0, 0].numpy()
        flip = transforms[0, 0, 0] < 0
        mirrored += int(flip)
        expected = (hu[..., ::-1], levels[..., ::-1]) if flip else (hu, levels)
        assert np.allclose(found[0], expected[0], atol=0.05)
        assert (found[1] == expected[1]).all()
    assert 0 < mirrored < 8


def test_a_shift_is_in_mm_and_air_comes_in() -> None:
    hu = np.full((16, 16, 16), 40, np.int16)
    classes = np.zeros(hu.shape, np.uint8)
    classes[8, 8, 8] = 1
    augment = CubeAugmentConfig(rotate_degrees=0, shift_mm=30, scale=0)
    spacing = torch.tensor([[6.0, 3.0, 2.0]])
    voxels, labels = as_tensors(hu.astype(np.float32), classes)
    # A transform of the grid moves a voxel the opposite way; mirroring also reverses x.
    for seed in range(10):
        transforms = sample_transforms(spacing * 16, augment, seeded(seed))
        shift_mm = (transforms[0, :, 3] * spacing[0].flip(0) * 16 / 2).flip(0).numpy()
        assert (np.abs(shift_mm) <= 30).all()
        slice_labels, moved = transform_cubes(voxels, labels, transforms)
        expected = np.array([8, 8, 8]) - shift_mm / spacing[0].numpy()
        if transforms[0, 0, 0] < 0:
            expected[2] = 15 - 8 + shift_mm[2] / spacing[0, 2].item()
        if ((expected > 0.5) & (expected < 14.5)).all():
            assert np.abs(np.argwhere(moved[0, 0].numpy())[0] - expected).max() <= 0.5
        assert slice_labels.min() < -900


def test_a_turned_ball_stays_a_ball_where_voxels_are_no_cubes() -> None:
    spacing = np.array([6.0, 2.0, 3.0])
    z, y, x = ((np.arange(32) - 15.5)[:, None] * spacing).T
    ball = (z[:, None, None] ** 2 + y[:, None] ** 2 + x**2 < 24**2).astype(np.uint8)
    augment = CubeAugmentConfig(rotate_degrees=180, shift_mm=0, scale=0)
    for seed in range(5):
        transforms = sample_transforms(
            torch.tensor(spacing * 32)[None].float(), augment, seeded(seed)
        )
        voxels, classes = as_tensors(ball.astype(np.float32), ball)
        _, moved = transform_cubes(voxels, classes, transforms)
        turned = moved[0, 0].numpy()
        assert 2 * (turned * ball).sum() / (turned.sum() + ball.sum()) > 0.93


def test_hu_vary_within_their_bounds_and_equal_seeds_give_equal_voxels() -> None:
    augment = CubeAugmentConfig(gain=0.1, offset_hu=50, noise_hu=0)
    hu = torch.full((20, 1, 4, 4, 4), 1000.0)
    varied = vary_hu(hu, augment, seeded(0))
    assert varied.min() >= 850
    assert varied.max() <= 1150
    assert varied.amax(dim=(1, 2, 3, 4)).unique().numel() == 20
    noisy = CubeAugmentConfig(gain=0, offset_hu=0, noise_hu=60)
    assert 5 < vary_hu(hu, noisy, seeded(0)).std() < 60
    assert torch.equal(vary_hu(hu, noisy, seeded(1)), vary_hu(hu, noisy, seeded(1)))
    assert not torch.equal(vary_hu(hu, noisy, seeded(1)), vary_hu(hu, noisy, seeded(2)))
