"""Training of slice models on the crops of a round.

If the model has patch logits, bounding boxes are part of the loss; see `training.models.patches`.
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
from training.models.patches import PatchReader, box_loss
from training.optimization.averaging import keeps_statistics, recount_statistics
from training.optimization.trainer import Examples, Loss, RoundWork, Trained, fit, replay


def slice_examples(buffer: CropBuffer, index: SliceIndex) -> Examples:
    """Return the inputs of a round with their targets, as a dataset."""

    def gather(items: NDArray[np.int64]) -> dict[str, Tensor]:
        batch = gather_slices(buffer, index.crop[items], index.z[items])
        return batch | {"labels": torch.from_numpy(index.target[items, None])}

    return Examples(len(index), gather)


def count_slices(study: Study, config: RunConfig) -> int:
    """Count the inputs of a study whose target is known."""
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
    """Train a slice model in place on the slices whose target is known; see `fit`."""
    index, order = _plan(buffer, inputs, config, work)
    with _slice_loss(model, inputs, config) as loss:
        return fit(
            model, slice_examples(buffer, index), order, loss, config=config.train, work=work
        )


def refresh_statistics(
    model: PreTrainedModel,
    inputs: InputConfig,
    buffer: CropBuffer,
    config: RunConfig,
    work: RoundWork,
) -> None:
    """Recompute batch-normalisation statistics for averaged weights, see `recount_statistics`.

    All ranks compute the same statistics.
    """
    if not keeps_statistics(model):
        return
    index, order = _plan(buffer, inputs, config, work)

    def see(batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        transforms = sample_transforms(len(batch["labels"]), config.augment, generator)
        pixels = vary_intensity(make_pixels(batch, inputs, transforms), config.augment, generator)
        return normalise(pixels, inputs)

    recount_statistics(model, replay(slice_examples(buffer, index), order, see, work))


def _plan(
    buffer: CropBuffer, inputs: InputConfig, config: RunConfig, work: RoundWork
) -> tuple[SliceIndex, NDArray[np.int64]]:
    crops = range(len(buffer.vertebrae))
    index = index_slices(buffer, crops, inputs.trim_mm, config.train.weak_target)
    known = np.flatnonzero(~np.isnan(index.target))
    index = SliceIndex(index.crop[known], index.z[known], index.target[known])
    order = sample_order(
        index.target,
        fractured_share=config.train.fractured_share,
        batch=config.train.batch_size * config.train.accumulation,
        steps=work.steps,
        seed=work.seed,
    )
    return index, order


def sample_order(
    target: NDArray[np.float32], *, fractured_share: float, batch: int, steps: int, seed: int
) -> NDArray[np.int64]:
    """Sample the slices of each step, with the same share of fractured slices in every step.

    Fractured and intact slices are sampled without replacement until each is exhausted, then again.

    Parameters
    ----------
    target : ndarray, shape (inputs,), float32
        Target of each input; above 0 counts as fractured.
    fractured_share : float
        Fraction of fractured slices in each step; 0, or inputs of one class only, samples all
        slices uniformly.
    batch : int
        Number of slices per step.
    steps : int
        Number of steps.
    seed : int
        Random seed.

    Returns
    -------
    ndarray, shape (steps, batch), int64
        Indices of the inputs of each step.
    """
    fractured, intact = np.flatnonzero(target > 0), np.flatnonzero(target == 0)
    generator = np.random.default_rng(seed)
    kinds = [(np.arange(target.size), batch)]
    if fractured_share and fractured.size and intact.size and batch > 1:
        count = min(batch - 1, max(1, round(fractured_share * batch)))
        kinds = [(fractured, count), (intact, batch - count)]
    sampled = [_endless(i, steps * n, generator).reshape(steps, n) for i, n in kinds]
    return generator.permuted(np.concatenate(sampled, axis=1), axis=1)


def _endless(
    items: NDArray[np.int64], count: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Return the first `count` items of an endless sequence of permutations of `items`."""
    times = -(-count // items.size)
    return np.concatenate([generator.permutation(items) for _ in range(times)])[:count]


@contextmanager
def _slice_loss(model: PreTrainedModel, inputs: InputConfig, config: RunConfig) -> Iterator[Loss]:
    """Cross-entropy of pixels made on the model's device, plus the loss of the boxes."""
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
