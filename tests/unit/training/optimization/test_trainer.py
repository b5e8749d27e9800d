import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from storage_schemas.errors import RunError
from tests.cohorts import make_buffer, make_vertebra
from training.config import (
    AugmentConfig,
    InputConfig,
    ModelConfig,
    RunConfig,
    TrainConfig,
)
from training.data.crop_buffer import CropBuffer
from training.models.slice_model import build_model
from training.models.slice_training import refresh_statistics, sample_order, train_slices
from training.optimization.trainer import RoundWork, parameter_groups

INPUTS = InputConfig(size=32, crop_mm=32, trim_mm=0)
STILL = AugmentConfig(rotate_degrees=0, shift_mm=0, scale=0, gain=0, offset=0, noise=0)
ONE_STEP = TrainConfig(
    epochs=1, batch_size=8, learning_rate=1e-3, warmup=0, fractured_share=0, box_weight=0
)
Lines = list[Mapping[str, Any]]


def build(family: str = "vit", seed: int = 0) -> PreTrainedModel:
    return build_model(
        ModelConfig(family=family, patch=16, width=32, depth=2, heads=2), INPUTS, seed
    )


def mirrored_crops(slices: int = 4) -> CropBuffer:
    """One fractured crop with boxes and one intact crop, equal to their mirror images."""
    half = np.random.default_rng(0).integers(-400, 1200, (2, slices, 32, 16))
    hu = np.concatenate([half, half[..., ::-1]], axis=3)
    shape = (slices, 32, 32)
    slice_labels = [int(z % 2) for z in range(slices)]
    boxes = {z: (4.0, 4.0, 20.0, 20.0) for z in range(slices) if slice_labels[z]}
    fractured = make_vertebra(shape, fractured=1, slice_labels=slice_labels, boxes=boxes)
    return make_buffer((fractured, hu[0]), (make_vertebra(shape), hu[1]))


def work(config: TrainConfig, log: Any = lambda line: None, **more: Any) -> RoundWork:
    known = 4 + 4
    steps = max(1, round(known * config.epochs / (config.batch_size * config.accumulation)))
    given = {"number": 1, "steps": steps, "rate": config.learning_rate, "layer_decay": 1.0}
    return RoundWork(**{**given, "ema": 0.0, "seed": 3, "log": log, **more})


def train(
    model: PreTrainedModel,
    config: TrainConfig,
    augment: AugmentConfig = STILL,
    buffer: CropBuffer | None = None,
    **more: Any,
) -> tuple[float, Lines]:
    lines: Lines = []
    settings = RunConfig(inputs=INPUTS, augment=augment, train=config)
    task = work(config, **{"log": lines.append, **more})
    trained = train_slices(model, INPUTS, buffer or mirrored_crops(), settings, task)
    return trained.loss, lines


def weights(model: PreTrainedModel) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def order(target: NDArray[np.float32], share: float, batch: int, batches: int) -> NDArray[Any]:
    return sample_order(target, fractured_share=share, batch=batch, steps=batches, seed=0)


FEW_FRACTURED = np.array([1, 0.35, 1] + [0] * 20, np.float32)


@pytest.mark.parametrize(
    ("share", "batch", "fractured"),
    [(0.25, 8, 2), (0.5, 6, 3), (0.01, 8, 1), (0.99, 8, 7), (0.3, 32, 10)],
)
def test_every_batch_has_the_same_number_of_fractured_slices(
    share: float, batch: int, fractured: int
) -> None:
    sampled = FEW_FRACTURED[order(FEW_FRACTURED, share, batch, 12)] > 0
    assert sampled.sum(axis=1).tolist() == [fractured] * 12


def test_slices_of_a_class_are_sampled_again_only_after_all_others() -> None:
    sampled = order(FEW_FRACTURED, 0.25, 8, 10).ravel()
    for kind in (FEW_FRACTURED > 0, FEW_FRACTURED == 0):
        mine = sampled[kind[sampled]]
        for start in range(0, mine.size - kind.sum() + 1, kind.sum()):
            part = mine[start : start + kind.sum()]
            counts = np.bincount(part, minlength=kind.size)[kind]
            assert counts.max() - counts.min() <= 2
        counts = np.bincount(mine, minlength=kind.size)[kind]
        assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize(
    ("target", "share", "batch"),
    [
        (FEW_FRACTURED, 0.0, 4),
        (np.zeros(23, np.float32), 0.5, 4),
        (np.ones(23, np.float32), 0.5, 4),
        (FEW_FRACTURED, 0.5, 1),
    ],
    ids=["no share asked for", "all intact", "all fractured", "batches of one"],
)
def test_without_a_share_slices_are_sampled_uniformly(
    target: NDArray[np.float32], share: float, batch: int
) -> None:
    sampled = order(target, share, batch, 23).ravel()
    assert np.bincount(sampled).tolist() == [batch] * 23
    assert sampled.tolist() != sorted(sampled.tolist())


def test_fractured_slices_have_no_fixed_place_in_a_batch() -> None:
    places = (FEW_FRACTURED[order(FEW_FRACTURED, 0.25, 4, 60)] > 0).sum(axis=0)
    assert places.min() > 5


def gradients_of_one_step(config: TrainConfig) -> tuple[dict[str, Tensor], Tensor, float]:
    model = build()
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda parameter: found.update({name: parameter.grad.clone()})

    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(keep(name))
    loss, _ = train(model, config)
    return found, weights(model), loss


@pytest.mark.parametrize(("batch", "accumulation"), [(4, 2), (2, 4), (1, 8)])
def test_small_batches_accumulated_are_one_large_batch(batch: int, accumulation: int) -> None:
    whole = gradients_of_one_step(ONE_STEP)
    parts = gradients_of_one_step(replace(ONE_STEP, batch_size=batch, accumulation=accumulation))
    assert list(parts[0]) == list(whole[0])
    assert max(gradient.abs().max() for gradient in whole[0].values()) > 0.01
    for name, gradient in whole[0].items():
        torch.testing.assert_close(parts[0][name], gradient, rtol=1e-3, atol=1e-6)
    assert parts[2] == pytest.approx(whole[2], rel=1e-5)


LEARN = replace(ONE_STEP, epochs=4, batch_size=4, fractured_share=0.5, box_weight=1.0)
FAMILIES: tuple[str, ...] = ("vit", "resnet")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_seed_gives_the_same_weights_and_another_does_not(family: str) -> None:
    augment = AugmentConfig()
    found = []
    for seed in (1, 1, 2):
        model = build(family)
        train(model, LEARN, augment=augment, seed=seed)
        found.append(weights(model))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("family", FAMILIES)
def test_training_lowers_the_loss_and_leaves_no_hook(family: str) -> None:
    model = build(family)
    config = replace(LEARN, epochs=20, learning_rate=3e-3)
    _, lines = train(model, config)
    losses = [line["loss"] for line in lines]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_boxes_change_the_trained_weights(family: str) -> None:
    found = []
    for box_weight in (0.0, 1.0):
        model = build(family)
        train(model, replace(LEARN, box_weight=box_weight))
        found.append(weights(model))
    assert not torch.equal(found[0], found[1])


@pytest.mark.parametrize("box_weight", [0.0, 1.0])
def test_a_loss_that_is_no_number_stops_the_round_at_once(box_weight: float) -> None:
    model = build()
    torch.nn.init.constant_(model.classifier.weight, math.nan)
    lines: Lines = []
    with pytest.raises(RunError, match="at step 1 ") as caught:
        train(model, replace(LEARN, box_weight=box_weight), log=lines.append)
    assert caught.value.kind == "training-diverged"
    assert lines == []


def test_slices_of_unknown_target_are_left_out() -> None:
    found = []
    both = mirrored_crops()
    whole = (both.vertebrae[1], both.crop(1))
    unknown = (make_vertebra(both.vertebrae[0].shape, fractured=None), both.crop(0))
    for crops in ([whole], [whole, unknown]):
        model = build()
        train(model, LEARN, buffer=make_buffer(*crops))
        found.append(weights(model))
    assert torch.equal(found[0], found[1])


@pytest.mark.parametrize(
    ("epochs", "batch", "accumulation", "steps"),
    [(1, 4, 1, 2), (3, 4, 1, 6), (0.5, 4, 1, 1), (2, 2, 4, 2), (0.01, 4, 1, 1)],
)
def test_epochs_set_the_number_of_sampled_slices(
    epochs: float, batch: int, accumulation: int, steps: int
) -> None:
    config = replace(ONE_STEP, epochs=epochs, batch_size=batch, accumulation=accumulation)
    _, lines = train(build(), config)
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    assert {line["steps"] for line in lines} == {steps}


def test_the_rate_rises_in_the_warm_up_and_falls_to_nothing() -> None:
    _, lines = train(build(), replace(ONE_STEP, epochs=20, warmup=0.25))
    rates = [line["learning_rate"] for line in lines]
    peak = int(np.argmax(rates))
    assert 4 <= peak <= 5
    assert rates[peak] == pytest.approx(1e-3)
    assert rates == sorted(rates[: peak + 1]) + sorted(rates[peak + 1 :], reverse=True)
    assert rates[-1] < 2e-5


def rates(model: PreTrainedModel, decay: float) -> dict[str, float]:
    groups = parameter_groups(model, ONE_STEP, work(ONE_STEP, layer_decay=decay))
    rate = {
        id(p): group["lr"] / ONE_STEP.learning_rate for group in groups for p in group["params"]
    }
    return {name: rate[id(parameter)] for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_rate_falls_from_the_head_to_the_embedding_layer_by_layer(family: str) -> None:
    found = rates(build(family), 0.5)
    top = {v for n, v in found.items() if n.startswith("classifier")}
    bottom = {v for n, v in found.items() if "embed" in n}
    layers = sorted(set(found.values()))
    assert top == {1.0}
    assert bottom == {layers[0]}
    # Two layers of the ViT, three stages of the residual network, the embedding, and the head.
    assert layers == [0.5**n for n in reversed(range(len(layers)))]
    assert len(layers) == {"vit": 4, "resnet": 5}[family]


def test_without_decay_all_rates_are_the_same_and_no_parameter_is_lost() -> None:
    model = build("resnet")
    assert set(rates(model, 1.0).values()) == {1.0}
    assert len(rates(model, 1.0)) == len(list(model.parameters()))


def test_only_matrices_have_weight_decay() -> None:
    for group in parameter_groups(build(), ONE_STEP, work(ONE_STEP)):
        for parameter in group["params"]:
            expected = ONE_STEP.weight_decay if parameter.ndim > 1 else 0
            assert group["weight_decay"] == expected


def test_the_ema_lies_between_start_and_end_and_is_optional() -> None:
    model, start = build(), weights(build())
    task = work(LEARN, ema=0.5)
    settings = RunConfig(inputs=INPUTS, augment=STILL, train=LEARN)
    trained = train_slices(model, INPUTS, mirrored_crops(), settings, task)
    assert trained.ema is not None
    ema = torch.cat([trained.ema[n].flatten() for n, _ in model.named_parameters()])
    moved, behind = (weights(model) - start).norm(), (weights(model) - ema).norm()
    assert 0 < behind < moved
    assert train_slices(build(), INPUTS, mirrored_crops(), settings, work(LEARN)).ema is None


def test_statistics_counted_anew_are_those_of_the_rounds_inputs() -> None:
    model = build("resnet")
    settings = RunConfig(inputs=INPUTS, augment=STILL, train=LEARN)
    slice_labels: list[Tensor] = []
    norm = next(m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))
    handle = norm.register_forward_pre_hook(lambda module, inputs: slice_labels.append(inputs[0]))
    norm.running_mean.fill_(99)
    refresh_statistics(model, INPUTS, mirrored_crops(), settings, work(LEARN))
    handle.remove()
    means = torch.stack([batch.mean(dim=(0, 2, 3)) for batch in slice_labels])
    torch.testing.assert_close(norm.running_mean, means.mean(dim=0))
    assert norm.momentum == 0.1
    assert not model.training


def test_a_model_without_statistics_is_left_alone() -> None:
    model = build()
    settings = RunConfig(inputs=INPUTS, augment=STILL, train=LEARN)
    refresh_statistics(model, INPUTS, mirrored_crops(), settings, work(LEARN))
    assert torch.equal(weights(model), weights(build()))
