import json
import math
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from storage_schemas.errors import UsageError
from tests.cohorts import make_buffer, make_vertebra
from training.config import AugmentConfig, InputConfig, inputs_from_json
from training.data.inputs import (
    Batch,
    SliceTransforms,
    cover_patches,
    gather_slices,
    identity_transforms,
    index_slices,
    make_pixels,
    normalise,
    sample_transforms,
    vary_intensity,
)

STILL = AugmentConfig(rotate_degrees=0, shift_mm=0, scale=0, gain=0, offset=0, noise=0)
WINDOW = InputConfig(size=32, crop_mm=32, windows=((0, 1000),), trim_mm=0)
NOWHERE = (math.nan,) * 4
Box = tuple[float, float, float, float]


def one_slice(
    hu: NDArray[Any], spacing_mm: tuple[float, float] = (1.0, 1.0), box: Box | None = None
) -> Batch:
    vertebra = make_vertebra((1, *hu.shape), (1.0, *spacing_mm), boxes={0: box} if box else {})
    return gather_slices(make_buffer((vertebra, hu[None])), np.array([0]), np.array([0]))


def draw(batch: Batch, inputs: InputConfig, transforms: SliceTransforms | None = None) -> Tensor:
    return make_pixels(batch, inputs, transforms or identity_transforms(len(batch["hu"])))[:, 1]


def speckle(rows: int, columns: int, seed: int = 0) -> NDArray[np.int16]:
    random = np.random.default_rng(seed)
    return random.integers(0, 1000, (rows, columns)).astype(np.int16)


def test_equal_spacing_reproduces_the_native_slice() -> None:
    y, x = np.mgrid[0:32, 0:32]
    hu = 100 + 20 * x + 5 * y
    picture = draw(one_slice(hu), WINDOW)[0].numpy()
    np.testing.assert_allclose(picture[1:-1, 1:-1], hu[1:-1, 1:-1] / 1000, atol=1e-5)


def test_half_the_pixels_are_the_means_of_blocks_of_the_native_slice() -> None:
    hu = speckle(32, 32)
    picture = draw(one_slice(hu), replace(WINDOW, size=16))[0].numpy()
    blocks = hu.reshape(16, 2, 16, 2).mean(axis=(1, 3)) / 1000
    np.testing.assert_allclose(picture, blocks, atol=1e-5)


@pytest.mark.parametrize(("hu", "value"), [(-400, 0.0), (0, 0.0), (250, 0.25), (3000, 1.0)])
def test_the_window_maps_to_0_to_1_and_clips(hu: int, value: float) -> None:
    picture = draw(one_slice(np.full((40, 40), hu)), WINDOW)
    assert picture.flatten().tolist() == pytest.approx([value] * 32 * 32)


def test_beyond_the_crop_lies_air() -> None:
    picture = draw(one_slice(np.full((16, 16), 1000)), WINDOW)[0]
    assert picture[8:24, 8:24][1:-1, 1:-1].min() == 1
    assert picture.sum() == pytest.approx(256, rel=1e-4)


@pytest.mark.parametrize("spacing_mm", [(0.4, 0.4), (0.7, 0.7), (1.1, 1.1), (0.5, 0.9)])
def test_the_same_content_at_another_spacing_gives_nearly_the_same_input(
    spacing_mm: tuple[float, float],
) -> None:
    def scan(spacing_mm: tuple[float, float]) -> Batch:
        counts = [round(48 / pitch) for pitch in spacing_mm]
        y, x = (
            (np.arange(count) - (count - 1) / 2) * pitch
            for count, pitch in zip(counts, spacing_mm, strict=True)
        )
        bump = np.exp(-((y[:, None] - 5) ** 2 + (x[None] + 3) ** 2) / (2 * 4**2))
        return one_slice(np.rint(900 * bump), spacing_mm)

    found, reference = draw(scan(spacing_mm), WINDOW), draw(scan((1.0, 1.0)), WINDOW)
    assert reference.max() > 0.85
    assert (found - reference).abs().max() < 0.02


def test_a_slice_filled_up_in_a_batch_gives_the_input_that_it_gives_alone() -> None:
    crops = [
        (make_vertebra((1, rows, columns), (1, 0.8, 0.6)), speckle(rows, columns, rows)[None])
        for rows, columns in ((20, 44), (50, 30))
    ]
    together = draw(gather_slices(make_buffer(*crops), np.array([0, 1]), np.array([0, 0])), WINDOW)
    for row, crop in enumerate(crops):
        alone = draw(gather_slices(make_buffer(crop), np.array([0]), np.array([0])), WINDOW)
        np.testing.assert_allclose(together[row], alone[0], atol=1e-4)


@pytest.mark.parametrize(
    ("z", "channels"), [(0, [0, 0, 1]), (1, [0, 1, 2]), (3, [2, 3, 4]), (4, [3, 4, 4])]
)
def test_channels_are_the_neighbours_and_repeat_at_the_ends(z: int, channels: list[int]) -> None:
    hu = np.arange(5)[:, None, None] * np.full((1, 4, 4), 100)
    batch = gather_slices(make_buffer((make_vertebra(hu.shape), hu)), np.array([0]), np.array([z]))
    assert (batch["hu"][0].amin((1, 2)) / 100).tolist() == channels
    assert (batch["hu"][0].amax((1, 2)) / 100).tolist() == channels


def test_channels_never_come_from_the_next_crop() -> None:
    crops = [(make_vertebra((2, 4, 4)), np.full((2, 4, 4), value)) for value in (1, 2, 3)]
    batch = gather_slices(make_buffer(*crops), np.array([1, 1]), np.array([0, 1]))
    assert set(batch["hu"].flatten().tolist()) == {2}


def test_the_index_lists_slices_with_targets_from_boxes_and_labels() -> None:
    drawn = make_vertebra((4, 4, 4), fractured=1, slice_labels=[0, 1, 1, None])
    weak, whole = make_vertebra((3, 4, 4), fractured=1), make_vertebra((2, 4, 4), fractured=0)
    unknown = make_vertebra((1, 4, 4), fractured=None)
    crops = [(vertebra, np.zeros(vertebra.shape)) for vertebra in (drawn, weak, whole, unknown)]
    index = index_slices(make_buffer(*crops), [0, 1, 2, 3], 0, weak_target=0.25)
    assert index.crop.tolist() == [0] * 4 + [1] * 3 + [2] * 2 + [3]
    assert index.z.tolist() == [0, 1, 2, 3, 0, 1, 2, 0, 1, 0]
    np.testing.assert_allclose(
        index.target, [0, 1, 1, 0.25, 0.25, 0.25, 0.25, 0, 0, math.nan], rtol=1e-6
    )


def test_transforms_mirror_half_of_the_inputs_left_to_right_only() -> None:
    transforms = sample_transforms(400, STILL, torch.Generator().manual_seed(0))
    assert set(transforms.matrix[:, 0, 0].tolist()) == {-1.0, 1.0}
    assert 160 < (transforms.matrix[:, 0, 0] < 0).sum() < 240
    assert transforms.matrix[:, 1].tolist() == [[0.0, 1.0]] * 400
    assert not transforms.matrix[:, 0, 1].any()
    assert not transforms.shift_mm.any()


def test_a_mirroring_transform_gives_the_mirror_image() -> None:
    batch = one_slice(speckle(40, 36), (0.9, 0.9))
    mirror = SliceTransforms(torch.tensor([[[-1.0, 0.0], [0.0, 1.0]]]), torch.zeros(1, 2))
    np.testing.assert_allclose(draw(batch, WINDOW, mirror), draw(batch, WINDOW).flip(2), atol=1e-4)


def test_a_shift_in_mm_moves_the_picture_by_so_many_mm() -> None:
    batch = one_slice(speckle(80, 80), (0.5, 0.5))
    inputs = replace(WINDOW, crop_mm=24, size=24)
    moved = SliceTransforms(torch.eye(2)[None], torch.tensor([[3.0, -2.0]]))
    np.testing.assert_allclose(
        draw(batch, inputs, moved)[0, 2:, :-3], draw(batch, inputs)[0, :-2, 3:], atol=1e-4
    )


def test_transforms_stay_within_the_largest_deviations() -> None:
    augment = AugmentConfig(rotate_degrees=10, scale=0.2, shift_mm=3)
    transforms = sample_transforms(500, augment, torch.Generator().manual_seed(1))
    scale = torch.linalg.det(transforms.matrix).abs().sqrt()
    angle = torch.rad2deg(
        torch.atan2(-transforms.matrix[:, 0, 1], transforms.matrix[:, 1, 1])
    ).abs()
    for drawn, low, high in ((scale, 0.8, 1.2), (angle, 0, 10), (transforms.shift_mm, -3, 3)):
        assert low - 1e-5 <= drawn.min() < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < drawn.max() <= high + 1e-4


def test_intensity_without_deviation_stays_and_with_it_stays_in_the_window() -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(8, 3, 16, 16, generator=generator)
    assert torch.equal(vary_intensity(pixels, STILL, generator), pixels)
    varied = vary_intensity(pixels, AugmentConfig(gain=0.5, offset=0.5, noise=0.5), generator)
    assert (varied != pixels).float().mean() > 0.5
    assert varied.min() >= 0
    assert varied.max() <= 1


def test_normalising_takes_each_channels_mean_and_std() -> None:
    inputs = replace(WINDOW, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0))
    assert normalise(torch.ones(1, 3, 1, 1), inputs).flatten().tolist() == [1.0, 3.0, 0.5]


@pytest.mark.parametrize(
    ("box", "covered"),
    [
        ((0, 0, 32, 32), [[1, 1], [1, 1]]),
        (NOWHERE, [[0, 0], [0, 0]]),
        ((0, 0, 16, 32), [[1, 0], [1, 0]]),
        ((0, 16, 32, 16), [[0, 0], [1, 1]]),
        ((16, 0, 16, 16), [[0, 1], [0, 0]]),
        ((8, 0, 16, 16), [[0.5, 0.5], [0, 0]]),
        ((8, 8, 16, 16), [[0.25, 0.25], [0.25, 0.25]]),
    ],
)
def test_patches_are_covered_by_what_the_box_takes_of_them(
    box: Box, covered: list[list[float]]
) -> None:
    batch = one_slice(np.zeros((32, 32)), box=box)
    found = cover_patches(batch, WINDOW, identity_transforms(1), 2)
    assert found.view(2, 2).tolist() == covered


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("box", [(20, 14, 20, 12), (9, 36, 14, 18)])
def test_a_bright_square_and_its_box_stay_together_under_any_transform(box: Box, seed: int) -> None:
    x, y, width, height = (int(value) for value in box)
    hu = np.zeros((64, 70))
    hu[y : y + height, x : x + width] = 1000
    batch = one_slice(hu, box=box)
    inputs = replace(WINDOW, size=64, crop_mm=60)
    augment = AugmentConfig(rotate_degrees=20, shift_mm=8, scale=0.2)
    transforms = sample_transforms(1, augment, torch.Generator().manual_seed(seed))
    bright = functional.avg_pool2d(draw(batch, inputs, transforms)[:, None], 8).flatten()
    covered = cover_patches(batch, inputs, transforms, 8).flatten()
    assert covered.max() > 0.7
    assert (bright - covered).abs().max() < 0.2
    assert bright.sum().item() == pytest.approx(covered.sum().item(), rel=0.08)


WINDOWS = ((0.0, 1000.0), (-100.0, 100.0), (400.0, 600.0))


def test_three_windows_show_the_middle_slice_three_times() -> None:
    hu = np.full((3, 32, 32), -1000)
    hu[1] = np.random.default_rng(0).integers(-200, 1200, (32, 32))
    buffer = make_buffer((make_vertebra((3, 32, 32)), hu))
    batch = gather_slices(buffer, np.array([0]), np.array([1]))
    pixels = make_pixels(batch, replace(WINDOW, windows=WINDOWS), identity_transforms(1))
    assert pixels.shape == (1, 3, 32, 32)
    for channel, window in enumerate(WINDOWS):
        alone = make_pixels(batch, replace(WINDOW, windows=(window,)), identity_transforms(1))
        torch.testing.assert_close(pixels[:, channel], alone[:, 1])


@pytest.mark.parametrize(
    "windows", [(), ((0, 1), (0, 1)), ((5, 5),), ((0, 1), (3, 2), (0, 1)), ((0, 1, 2),)]
)
def test_windows_that_make_no_three_channels_are_refused(windows: Any) -> None:
    with pytest.raises(UsageError, match="config-invalid"):
        replace(WINDOW, windows=windows)


def test_windows_read_back_equal_from_json() -> None:
    inputs = replace(WINDOW, windows=WINDOWS)
    assert inputs_from_json(json.loads(json.dumps(asdict(inputs)))) == inputs
