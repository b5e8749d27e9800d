"""Heat maps point at what the model was trained on, and change with its weights."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy
from transformers import PreTrainedModel

from training.config import InputConfig, ModelConfig
from training.explanation.heatmaps import explain
from training.models.encoders import build_encoder
from training.models.patches import box_loss
from training.models.sequence_model import CervicalSequenceConfig, CervicalSequenceModel
from training.models.slice_model import build_model

SIZE, POSITIONS, LEVEL = 32, 3, 2
INPUTS = InputConfig(size=SIZE, trim_mm=0)
FAMILIES: tuple[str, ...] = ("vit", "resnet")
SETTINGS = {
    "vit": ModelConfig(family="vit", patch=4, width=32, depth=2, heads=2),
    "resnet": ModelConfig(family="resnet", patch=8, width=32, depth=1),
}


def draw(count: int, seed: int) -> tuple[Tensor, Tensor, NDArray[np.int64]]:
    """Noise, half of it with a bright line; labels; and the box of each line: x, y, width, height.

    A line is 10 x 2 pixels, its box 14 x 8: a ninth of the picture.
    """
    random = np.random.default_rng(seed)
    pixels = random.normal(0, 0.5, (count, 1, SIZE, SIZE)).astype(np.float32)
    labels, boxes = np.arange(count) % 2, np.zeros((count, 4), np.int64)
    for row in np.flatnonzero(labels):
        x, y = random.integers(2, SIZE - 12), random.integers(3, SIZE - 5)
        pixels[row, 0, y : y + 2, x : x + 10] += 4.0
        boxes[row] = x - 2, y - 3, 14, 8
    return torch.from_numpy(pixels.repeat(3, axis=1)), torch.from_numpy(labels).float(), boxes


def patient_loss(
    model: CervicalSequenceModel, pixels: Tensor, labels: Tensor, boxes: NDArray[np.int64]
) -> Tensor:
    """Loss of positions, vertebrae and boxes, as in the training of sequence models."""
    valid = places(len(pixels))
    output = model(pixels, valid)
    side = math.isqrt(output.patches.shape[1])
    covered = torch.zeros(len(pixels), SIZE, SIZE)
    for row, (x, y, width, height) in enumerate(boxes):
        covered[row, y : y + height, x : x + width] = 1
    covered = functional.avg_pool2d(covered[:, None], SIZE // side).flatten(1)
    patches = model.classifier(output.patches)[..., 0]
    fractured = labels.view(-1, POSITIONS).amax(dim=1)
    return (
        cross_entropy(output.position_logits[valid], labels)
        + cross_entropy(output.vertebra_logits[:, LEVEL], fractured)
        + box_loss(patches, covered, labels == 0)
    )


def ask(model: PreTrainedModel, pixels: Tensor) -> Tensor:
    if isinstance(model, CervicalSequenceModel):
        logits: Tensor = model(pixels, places(len(pixels))).position_logits.flatten()
        return logits[places(len(pixels)).flatten()]
    return model(pixel_values=pixels).logits[:, 0]


def places(slices: int) -> Tensor:
    """Each three slices are one vertebra of one patient."""
    valid = torch.zeros(slices // POSITIONS, 7, POSITIONS, dtype=torch.bool)
    valid[:, LEVEL] = True
    return valid


def heat(model: PreTrainedModel, pixels: Tensor) -> Tensor:
    sequence = isinstance(model, CervicalSequenceModel)
    return explain(model, pixels, places(len(pixels)) if sequence else None)


def make(kind: str, family: str, seed: int = 0) -> PreTrainedModel:
    if kind == "slice":
        return build_model(SETTINGS[family], INPUTS, seed)
    encoder, _ = build_encoder(SETTINGS[family], INPUTS, seed)
    config = CervicalSequenceConfig(encoder.config, positions=POSITIONS, width=8)
    model = CervicalSequenceModel(config)
    model.encoder.load_state_dict(encoder.state_dict())
    return model


def taught(kind: str, family: str) -> PreTrainedModel:
    model = make(kind, family, seed=2).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(120):
        pixels, labels, boxes = draw(24, seed=100 + step)
        if isinstance(model, CervicalSequenceModel):
            loss = patient_loss(model, pixels, labels, boxes)
        else:
            loss = cross_entropy(ask(model, pixels), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module", params=[(k, f) for k in ("slice", "sequence") for f in FAMILIES])
def model(request: Any) -> PreTrainedModel:
    return taught(*request.param)


def test_the_hottest_place_lies_in_the_box_of_the_line(model: PreTrainedModel) -> None:
    pixels, labels, boxes = draw(120, seed=1)
    with torch.no_grad():
        assert ((ask(model, pixels) > 0) == labels.bool()).float().mean() > 0.9
    found = heat(model, pixels)
    assert found.shape == (120, SIZE, SIZE)
    fractured = np.flatnonzero(labels.numpy())
    hits = [inside(found[row], boxes[row]) for row in fractured]
    # The chance level is one in nine.
    assert np.mean(hits) > 1 / 3


def inside(found: Tensor, box: NDArray[np.int64]) -> bool:
    y, x = divmod(int(found.argmax()), SIZE)
    left, top, width, height = box
    return bool(left <= x < left + width and top <= y < top + height)


def test_a_model_with_other_random_weights_points_elsewhere(model: PreTrainedModel) -> None:
    kind, family = "slice", model.config.model_type
    if isinstance(model, CervicalSequenceModel):
        kind, family = "sequence", model.config.encoder.model_type
    pixels, labels, _ = draw(60, seed=2)
    fractured = labels.bool()
    before = heat(model, pixels)[fractured].flatten(1)
    again = heat(model, pixels)[fractured].flatten(1)
    other = heat(make(kind, family, seed=9).eval(), pixels)[fractured].flatten(1)
    warm = [row for row in range(len(before)) if before[row].any()]
    assert len(warm) > 0.8 * len(before)
    assert all(torch.equal(before[row], again[row]) for row in warm)
    # A map of zeros correlates with no other.
    found = [alike(before[row], other[row]) if other[row].any() else 0.0 for row in warm]
    assert np.mean(found) < 0.5


def alike(found: Tensor, other: Tensor) -> float:
    return float(spearmanr(found, other).statistic)


def test_explaining_does_not_change_the_model(model: PreTrainedModel) -> None:
    pixels, _, _ = draw(6, seed=3)
    model.zero_grad()
    encoder = model.encoder if isinstance(model, CervicalSequenceModel) else model.base_model
    with torch.no_grad():
        before = ask(model, pixels)
    settings = encoder.config._attn_implementation, encoder.config.output_attentions
    heat(model, pixels)
    with torch.no_grad():
        assert torch.equal(ask(model, pixels), before)
    assert (encoder.config._attn_implementation, encoder.config.output_attentions) == settings
    assert not encoder._forward_hooks
    assert all(parameter.grad is None for parameter in model.parameters())
