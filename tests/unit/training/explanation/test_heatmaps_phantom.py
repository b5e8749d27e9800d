"""On phantoms, the heat map of a model trained on fractures points at them."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy
from transformers import PreTrainedModel

from pipeline.phantom.fractures import sample_fractures
from pipeline.phantom.patient import pose_vertebrae, sample_patient
from pipeline.phantom.render import Grid, render_patient
from training.config import InputConfig, ModelConfig
from training.explanation.heatmaps import explain
from training.models.patches import PatchReader, box_loss
from training.models.slice_model import build_model

LEVEL, SIDE, PIXEL_MM, SLICES = "C5", 80, 0.8, 5
STEPS, BATCH = 150, 24


def scan(seed: int) -> tuple[Tensor, NDArray[np.int64]]:
    """Slices of C5 of one patient, and the box of the fracture in each, 0 where it shows none."""
    random = np.random.default_rng([5, seed])
    patient = sample_patient(random)
    broken = {LEVEL: sample_fractures(LEVEL, random)} if seed % 2 else {}
    pose = pose_vertebrae(patient)[LEVEL]
    x, y, z = pose.centre + pose.axes[1] * 12
    side = (np.arange(SIDE) - (SIDE - 1) / 2) * PIXEL_MM
    grid = Grid(x + side, y + side, z + np.linspace(-7, 5, SLICES))
    found = render_patient(patient, broken, grid, random)
    noisy = found.hu + random.normal(0, 15, found.hu.shape)
    boxes = np.zeros((SLICES, 4), np.int64)
    for place, level, (left, top, right, bottom) in found.boxes:
        if level == LEVEL:
            boxes[place] = left, top, right, bottom
    pixels = torch.from_numpy(((noisy + 500) / 900 - 1).clip(-1, 1).astype(np.float32))
    return pixels[:, None].repeat(1, 3, 1, 1), boxes


def scans(seeds: range) -> tuple[Tensor, NDArray[np.int64]]:
    pixels, boxes = zip(*map(scan, seeds), strict=True)
    return torch.cat(pixels), np.concatenate(boxes)


def cover(boxes: NDArray[np.int64]) -> Tensor:
    """Which pixels lie in a box, shape (slices, side, side)."""
    covered = torch.zeros(len(boxes), SIDE, SIDE)
    for row, (left, top, right, bottom) in enumerate(boxes):
        covered[row, max(top, 0) : bottom, max(left, 0) : right] = 1
    return covered


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    pixels, boxes = scans(range(80))
    labels, covered = torch.from_numpy(boxes.any(axis=1)).float(), cover(boxes)
    settings = ModelConfig(family="resnet", patch=8, width=48, depth=1)
    model = build_model(settings, InputConfig(size=SIDE), seed=0).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    reader, random = PatchReader(model), np.random.default_rng(0)
    for _ in range(STEPS):
        rows = random.integers(len(pixels), size=BATCH)
        logits = model(pixel_values=pixels[rows]).logits[:, 0]
        patches = reader.logits()
        share = functional.avg_pool2d(covered[rows, None], SIDE // math.isqrt(patches.shape[1]))
        loss = cross_entropy(logits, labels[rows])
        loss = loss + box_loss(patches, share.flatten(1), labels[rows] == 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    reader.close()
    return model.eval()


def test_the_hottest_place_lies_in_the_box_of_the_fracture(model: PreTrainedModel) -> None:
    pixels, boxes = scans(range(1000, 1060))
    broken = boxes.any(axis=1)
    covered = cover(boxes[broken])
    hottest = explain(model, pixels[broken]).flatten(1).argmax(dim=1)
    hits = covered.flatten(1)[torch.arange(len(hottest)), hottest].mean()
    chance = covered.mean()
    assert hits > 4 * chance
