"""How a slice model is trained on the crops of a round: order, pixels, and loss.

Where boxes are drawn and the model has patches, it is asked about them too; see
`training.models.patches`.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from training.config import InputConfig, RunConfig
from training.data.cohort import Study
from training.data.crop_buffer import CropBuffer
from training.data.inputs import (
    SliceIndex,
    cover_patches,
    gather_slices,
    index_slices,
    make_pixels,
    normalise,
    sample_transforms,
    vary_intensity,
)
from training.devices import device
from training.models.patches import PatchReader, box_loss
from training.optimization.trainer import Loss, RoundWork, Trained, fit

STATISTICS_BATCHES = 16
"""Batches that tell a batch normalisation anew what it sees."""


class SliceDataset(Dataset[Any]):
    """The inputs of a round, map-style; whole batches are gathered at once."""

    def __init__(self, buffer: CropBuffer, index: SliceIndex) -> None:
        self._buffer = buffer
        self._index = index

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, item: int) -> dict[str, Tensor]:
        return self.__getitems__([item])

    def __getitems__(self, items: list[int]) -> dict[str, Tensor]:
        batch = gather_slices(self._buffer, self._index.crop[items], self._index.z[items])
        return batch | {"labels": torch.from_numpy(self._index.target[items, None])}


def count_slices(study: Study, config: RunConfig) -> int:
    """Inputs of a study that can be trained on: those whose target is known."""
    trim, weak = config.inputs.trim_mm, config.train.weak_target
    return sum(
        int(np.isfinite(vertebra.targets(weak)[vertebra.slices(trim)]).sum())
        for vertebra in study.vertebrae
    )


def train_slices(
    model: PreTrainedModel,
    inputs: InputConfig,
    buffer: CropBuffer,
    config: RunConfig,
    work: RoundWork,
) -> Trained:
    """Train a slice model, in place, on the slices whose target is known; see `fit`."""
    index, order = _plan(buffer, inputs, config, work)
    dataset = SliceDataset(buffer, index)
    with _slice_loss(model, inputs, config) as loss:
        return fit(model, dataset, order, loss, config=config.train, work=work)


@torch.no_grad()
def refresh_statistics(
    model: PreTrainedModel,
    inputs: InputConfig,
    buffer: CropBuffer,
    config: RunConfig,
    work: RoundWork,
) -> None:
    """Let batch normalisations count anew, where weights were put together and not trained.

    The mean of two networks' statistics is not what the network between them sees (Izmailov et al.,
    Averaging Weights Leads to Wider Optima, UAI 2018, section 3.2). All ranks count alike.
    """
    if not keeps_statistics(model):
        return
    index, order = _plan(buffer, inputs, config, work)
    dataset = SliceDataset(buffer, index)
    with recomputed_statistics(model):
        for number, items in enumerate(order[:STATISTICS_BATCHES]):
            batch = {k: v.to(device()) for k, v in dataset.__getitems__(items.tolist()).items()}
            generator = torch.Generator().manual_seed(work.seed * 1_000_003 + number)
            transforms = sample_transforms(len(items), config.augment, generator)
            pixels = vary_intensity(
                make_pixels(batch, inputs, transforms), config.augment, generator
            )
            model(pixel_values=normalise(pixels, inputs))


def keeps_statistics(model: PreTrainedModel) -> bool:
    """Whether a model has batch normalisations."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


@contextmanager
def recomputed_statistics(model: PreTrainedModel) -> Iterator[None]:
    """Let batch normalisations take the plain mean over the batches that pass within the block."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    model.to(device()).train()
    yield
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()


def _plan(
    buffer: CropBuffer, inputs: InputConfig, config: RunConfig, work: RoundWork
) -> tuple[SliceIndex, NDArray[np.int64]]:
    crops = range(len(buffer.vertebrae))
    index = index_slices(buffer, crops, inputs.trim_mm, config.train.weak_target)
    known = np.flatnonzero(~np.isnan(index.target))
    index = SliceIndex(index.crop[known], index.z[known], index.target[known])
    order = sample_order(
        index.target,
        broken_share=config.train.fractured_share,
        batch=config.train.batch_size * config.train.accumulation,
        steps=work.steps,
        seed=work.seed,
    )
    return index, order


def sample_order(
    target: NDArray[np.float32], *, broken_share: float, batch: int, steps: int, seed: int
) -> NDArray[np.int64]:
    """Draw the slices of each step, every step with the same share of broken ones.

    Slices of either kind are drawn without replacement until all were drawn, then again.

    Parameters
    ----------
    target : ndarray, shape (inputs,), float32
        Above 0 is broken.
    broken_share : float
        Of each step; 0, or inputs of one kind only, draw slices as they come.
    batch, steps, seed : int

    Returns
    -------
    ndarray, shape (steps, batch), int64
    """
    fractured, intact = np.flatnonzero(target > 0), np.flatnonzero(target == 0)
    generator = np.random.default_rng(seed)
    kinds = [(np.arange(target.size), batch)]
    if broken_share and fractured.size and intact.size and batch > 1:
        count = min(batch - 1, max(1, round(broken_share * batch)))
        kinds = [(fractured, count), (intact, batch - count)]
    sampled = [_endless(i, steps * n, generator).reshape(steps, n) for i, n in kinds]
    return generator.permuted(np.concatenate(sampled, axis=1), axis=1)


def _endless(
    items: NDArray[np.int64], count: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """The first `count` of the items, shuffled again each time that all were drawn."""
    times = -(-count // items.size)
    return np.concatenate([generator.permutation(items) for _ in range(times)])[:count]


@contextmanager
def _slice_loss(model: PreTrainedModel, inputs: InputConfig, config: RunConfig) -> Iterator[Loss]:
    """The cross-entropy of pixels made on the model's device, and the loss of the boxes."""
    weight = config.train.box_weight
    patches = PatchReader(model) if weight and PatchReader.reads(model) else None

    def loss(wrapped: Any, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        labels = batch["labels"]
        transforms = sample_transforms(len(labels), config.augment, generator)
        pixels = vary_intensity(make_pixels(batch, inputs, transforms), config.augment, generator)
        logits = wrapped(pixel_values=normalise(pixels, inputs)).logits.float()
        found = functional.binary_cross_entropy_with_logits(logits, labels)
        if patches is None:
            return found
        each = patches.logits().float()
        covered = cover_patches(batch, inputs, transforms, math.isqrt(each.shape[1]))
        return found + weight * box_loss(each, covered, labels[:, 0] == 0)

    try:
        yield loss
    finally:
        if patches is not None:
            patches.close()
