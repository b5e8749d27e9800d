"""Positions of a vertebra, their pixels and their targets."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from storage_schemas.targets import COMPETITION
from tests.cohorts import make_buffer, make_study, make_vertebra
from training.config import AugmentConfig, InputConfig
from training.data.cohort import label_table
from training.data.inputs import (
    gather_slices,
    identity_transforms,
    make_pixels,
    normalise,
    order_neighbours,
)
from training.metrics.competition import competition_loss
from training.models.sequence_inputs import (
    PatientIndex,
    choose_positions,
    gather_patients,
    index_patients,
    list_warnings,
    make_patient_pixels,
    sample_positions,
    sample_vertebra_transforms,
)
from training.models.sequence_loss import LossWeights, find_targets, sequence_loss
from training.models.sequence_model import SequenceOutput

WINDOW = InputConfig(size=16, crop_mm=16, trim_mm=0)


@pytest.mark.parametrize(
    ("slices", "positions", "trim_mm", "chosen"),
    [
        (31, 4, 0, [0, 10, 20, 30]),
        (31, 4, 5, [5, 12, 18, 25]),
        (4, 4, 0, [0, 1, 2, 3]),
        (3, 5, 0, [0, 1, 2, -1, -1]),
        (9, 3, 3, [3, 4, 5]),
        (9, 5, 3, [3, 4, 5, -1, -1]),
        (5, 1, 0, [2]),
        (1, 3, 8, [0, -1, -1]),
    ],
)
def test_positions_are_evenly_spaced_and_distinct(
    slices: int, positions: int, trim_mm: float, chosen: list[int]
) -> None:
    found = choose_positions(make_vertebra((slices, 8, 8)), positions, trim_mm)
    assert found.tolist() == chosen


@pytest.mark.parametrize("drawn", [1, 2, 4, 9])
def test_slices_are_sampled_around_one_from_each_part_of_the_vertebra(drawn: int) -> None:
    vertebra = make_vertebra((10, 8, 8))
    random = np.random.default_rng(0)
    count, used = min(drawn, 8), set()
    for around in range(1, 9):
        for _ in range(20):
            found = sample_positions(vertebra, around, drawn, 1, random)
            assert around in found
            assert (found[count:] == -1).all()
            assert (np.diff(found[:count]) > 0).all()
            parts = np.array_split(np.arange(1, 9), count)
            assert all(z in part for z, part in zip(found, parts, strict=False))
            used |= set(found[:count].tolist())
    assert used == set(range(1, 9))


def test_a_fractured_vertebra_has_no_target_if_its_fracture_is_known_to_be_elsewhere() -> None:
    slice_labels = [0, 0, 1, 0, None, 0]
    buffer = make_buffer(
        (make_vertebra((6, 8, 8), fractured=1, slice_labels=slice_labels), np.zeros((6, 8, 8)))
    )
    for z, expected in (([0, 1], np.nan), ([0, 2], 1), ([0, 4], 1), ([3, 5], np.nan)):
        index = PatientIndex.of_single(
            np.array([0]), np.array([0]), np.array([z]), len(COMPETITION.levels)
        )
        np.testing.assert_array_equal(find_targets(buffer, index).vertebra[0, 0], expected)


def two_studies() -> tuple:
    crops = []
    for study, level, slices in (("1.2", "C7", 3), ("1.1", "C1", 2), ("1.1", "C3", 4)):
        hu = np.broadcast_to(100 * np.arange(slices)[:, None, None], (slices, 16, 16))
        vertebra = make_vertebra(hu.shape, study=study, level=level, fractured=int(level == "C3"))
        crops.append((vertebra, hu + 1000 * len(crops)))
    return make_buffer(*crops), index_patients(make_buffer(*crops), ["1.1", "1.2", "1.3"], 3, 0)


def test_vertebrae_stand_at_their_patient_and_level() -> None:
    _, index = two_studies()
    assert index.crop.tolist() == [[1, -1, 2, -1, -1, -1, -1], [-1] * 6 + [0], [-1] * 7]
    assert index.z[0, 0].tolist() == [0, 1, -1]
    assert index.z[0, 2].tolist() == [0, 2, 3]
    assert index.valid.sum(axis=(1, 2)).tolist() == [5, 3, 0]


def test_a_batch_holds_the_slices_of_all_positions_in_order() -> None:
    buffer, index = two_studies()
    batch = gather_patients(buffer, index, WINDOW)
    middle = batch["hu"][:, 1, 0, 0].tolist()
    assert middle == [1000, 1100, 2000, 2200, 2300, 0, 100, 200]
    assert batch["vertebra"].tolist() == [0, 0, 1, 1, 1, 2, 2, 2]
    assert torch.equal(batch["valid"], torch.from_numpy(index.valid))


def test_single_vertebrae_keep_their_level_and_positions() -> None:
    _, index = two_studies()
    alone = index.alone()
    assert alone.crop.max(axis=1).tolist() == [1, 2, 0]
    assert alone.crop.argmax(axis=1).tolist() == [0, 2, 6]
    assert [row[row >= 0].tolist() for row in alone.z] == [[0, 1], [0, 2, 3], [0, 1, 2]]
    assert ((alone.crop >= 0).sum(axis=1) == 1).all()


def test_channels_beyond_three_are_the_outer_neighbours() -> None:
    assert order_neighbours(3) == (-1, 0, 1)
    assert order_neighbours(5) == (-1, 0, 1, -2, 2)
    hu = np.arange(9)[:, None, None] * np.full((1, 4, 4), 100)
    buffer = make_buffer((make_vertebra(hu.shape), hu))
    for z, channels in ((4, [3, 4, 5, 2, 6]), (0, [0, 0, 1, 0, 2]), (7, [6, 7, 8, 5, 8])):
        batch = gather_slices(buffer, np.array([0]), np.array([z]), 5)
        assert (batch["hu"][0].amax((1, 2)) / 100).tolist() == channels


def masked_buffer() -> tuple:
    hu = np.full((3, 16, 16), 400)
    mask = np.zeros((3, 16, 16), np.uint8)
    mask[1, 4:12, 8:16] = 1
    buffer = make_buffer((make_vertebra(hu.shape), hu))
    return replace(buffer, masks=mask.ravel()), mask


def test_the_mask_is_the_last_channel_and_stays_as_it_is() -> None:
    buffer, mask = masked_buffer()
    inputs = replace(WINDOW, neighbours=5, mask=True)
    batch = gather_slices(buffer, np.array([0, 0]), np.array([0, 1]), 5, mask=True)
    pixels = normalise(make_pixels(batch, inputs, identity_transforms(2)), inputs)
    assert pixels.shape == (2, 6, 16, 16)
    assert not pixels[0, 5].any()
    # Its edges are as smooth as those of the bone beside it.
    np.testing.assert_array_equal(pixels[1, 5].round(), mask[1])
    assert pixels[1, 5].max() == 1


def test_without_masks_the_channel_is_zero() -> None:
    buffer, _ = masked_buffer()
    inputs = replace(WINDOW, mask=True)
    batch = gather_slices(replace(buffer, masks=None), np.array([0]), np.array([1]), mask=True)
    assert not make_pixels(batch, inputs, identity_transforms(1))[:, 3].any()


def test_the_first_three_channels_are_those_of_a_model_of_three() -> None:
    random = np.random.default_rng(0)
    hu = random.integers(-400, 1200, (7, 16, 16))
    buffer = make_buffer((make_vertebra(hu.shape), hu))
    wide = replace(WINDOW, neighbours=5, mask=True, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    narrow = replace(wide, neighbours=3, mask=False)
    shown = [
        make_patient_pixels(
            gather_patients(buffer, index_patients(buffer, ["1.2.1"], 3, 0), inputs), inputs
        )
        for inputs in (narrow, wide)
    ]
    assert torch.equal(shown[1][:, :3], shown[0])


def test_slices_of_a_vertebra_are_turned_alike_and_vertebrae_are_not() -> None:
    buffer, index = two_studies()
    batch = gather_patients(buffer, index, WINDOW)
    transforms = sample_vertebra_transforms(
        batch, AugmentConfig(), torch.Generator().manual_seed(0)
    )
    for values in (transforms.matrix.flatten(1), transforms.shift_mm):
        for rows in ([0, 1], [2, 3, 4], [5, 6, 7]):
            assert (values[rows] == values[rows[0]]).all()
        assert not torch.equal(values[0], values[2])


def test_masks_are_dropped_by_vertebra_and_not_augmented_in_intensity() -> None:
    buffer, _ = masked_buffer()
    inputs = replace(WINDOW, mask=True)
    index = index_patients(buffer, ["1.2.1"], 3, 0)
    batch = gather_patients(buffer, index, inputs)
    plain = make_patient_pixels(batch, inputs)[:, 3]
    slice_labels = set()
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        augment = AugmentConfig(forget_mask=0.5, noise=0.2)
        channel = make_patient_pixels(batch, inputs, None, augment, generator)[:, 3]
        slice_labels.add(bool(channel.any()))
        assert torch.equal(channel, plain) or not channel.any()
    assert slice_labels == {True, False}


def test_missing_levels_and_few_slices_are_warned_of() -> None:
    crops = [make_vertebra((3, 8, 8), level="C1"), make_vertebra((1, 8, 8), level="C2")]
    crops += [make_vertebra((9, 8, 8), level=f"C{level}") for level in (3, 4, 5)]
    assert list_warnings(crops, COMPETITION) == [
        "C6 was not found in the scan: its probability is a prior, not a prediction",
        "C7 was not found in the scan: its probability is a prior, not a prediction",
        "C1 has only 3 slices",
        "C2 has only 1 slice",
    ]


def test_slices_of_a_fractured_vertebra_without_boxes_have_no_target() -> None:
    boxed = make_vertebra((4, 8, 8), level="C1", fractured=1, slice_labels=[0, 1, None, 0])
    weak = make_vertebra((4, 8, 8), level="C2", fractured=1)
    whole = make_vertebra((2, 8, 8), level="C3", fractured=0)
    unknown = make_vertebra((4, 8, 8), level="C4", fractured=None)
    buffer = make_buffer(*((v, np.zeros(v.shape)) for v in (boxed, weak, whole, unknown)))
    found = find_targets(buffer, index_patients(buffer, ["1.2.1"], 4, 0))
    nan = np.nan
    np.testing.assert_array_equal(
        found.position[0, :4],
        [[0, 1, nan, 0], [nan] * 4, [0, 0, nan, nan], [nan] * 4],
    )
    np.testing.assert_array_equal(found.vertebra[0], [1, 1, 0, nan, nan, nan, nan])
    assert np.isnan(found.patient).all()


def outputs(**logits: torch.Tensor) -> SequenceOutput:
    shapes = {"logits": (3, 8), "vertebra_logits": (3, 7), "position_logits": (3, 7, 5)}
    shapes["own_logits"] = shapes["position_logits"]
    return SequenceOutput(
        **{name: logits.get(name, torch.zeros(shape)) for name, shape in shapes.items()}
    )


def targets_of_three() -> tuple:
    studies = [
        make_study(f"1.{n}", fractured) for n, fractured in enumerate(((), ("C2",), ("C1", "C5")))
    ]
    crops = [(v, np.zeros(v.shape)) for study in studies for v in study.vertebrae]
    buffer = make_buffer(*crops)
    index = index_patients(buffer, [study.study for study in studies], 5, 0)
    return studies, find_targets(buffer, index, studies)


def test_patients_have_the_competitions_loss() -> None:
    studies, targets = targets_of_three()
    logits = torch.linspace(-3, 2, 24).view(3, 8)
    shares = LossWeights(patient=1, vertebra=0, position=0)
    found = sequence_loss(outputs(logits=logits), targets.tensors(), shares)
    labels = [study.labels for study in studies]
    assert found.item() == pytest.approx(
        competition_loss(labels, torch.sigmoid(logits), COMPETITION), rel=1e-5
    )


@pytest.mark.parametrize(
    "unknown", [["C2"], ["patient_overall"], ["patient_overall", "C1", "C5"], COMPETITION.levels]
)
def test_unknown_targets_are_in_no_part_of_the_loss(unknown: Sequence[str]) -> None:
    studies = [make_study("1.0", ["C2"], unknown=unknown), make_study("1.1", ["C1"])]
    crops = [(v, np.zeros(v.shape)) for study in studies for v in study.vertebrae]
    buffer = make_buffer(*crops)
    index = index_patients(buffer, [study.study for study in studies], 5, 0)
    targets = find_targets(buffer, index, studies)
    names = [*COMPETITION.columns]
    hidden = [names.index(name) for name in unknown]
    assert np.flatnonzero(np.isnan(targets.patient[0])).tolist() == sorted(hidden)
    assert not targets.patient_weight[0][hidden].any()
    logits = torch.linspace(-3, 2, 16).view(2, 8).requires_grad_()
    vertebrae = torch.linspace(-2, 3, 14).view(2, 7).requires_grad_()
    both = outputs(logits=logits, vertebra_logits=vertebrae)
    shapes = {"position_logits": (2, 7, 5), "own_logits": (2, 7, 5)}
    both = replace(both, **{name: torch.zeros(shape) for name, shape in shapes.items()})
    loss = sequence_loss(both, targets.tensors(), LossWeights(position=0))
    loss.backward()
    known = [[i not in hidden for i in range(8)], [True] * 8]
    assert logits.grad is not None
    assert vertebrae.grad is not None
    assert (logits.grad != 0).tolist() == known
    assert (vertebrae.grad != 0).tolist() == [row[1:] for row in known]
    shares = LossWeights(patient=1, vertebra=0, position=0)
    by_hand = competition_loss(
        label_table(studies), torch.sigmoid(logits).detach().numpy(), COMPETITION
    )
    assert sequence_loss(both, targets.tensors(), shares).item() == pytest.approx(by_hand, rel=1e-5)


def test_a_fractured_vertebra_counts_twice_and_unknown_ones_not_at_all() -> None:
    _, targets = targets_of_three()
    targets.vertebra[2] = np.nan
    logits = torch.full((3, 7), -1.0)
    shares = LossWeights(patient=0, vertebra=1, position=0)
    found = sequence_loss(outputs(vertebra_logits=logits), targets.tensors(), shares)
    fractured, whole = -np.log(1 / (1 + np.e)), -np.log(1 - 1 / (1 + np.e))
    assert found.item() == pytest.approx((2 * fractured + 13 * whole) / 15, rel=1e-5)


def test_without_targets_loss_and_gradient_are_zero() -> None:
    _, targets = targets_of_three()
    for values in (targets.patient, targets.vertebra, targets.position):
        values[:] = np.nan
    logits = torch.ones(3, 7, requires_grad=True)
    loss = sequence_loss(outputs(vertebra_logits=logits), targets.tensors(), LossWeights())
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()
