"""Dice and cross-entropy of a localizer, over the places where they say most.

A place is one block of voxels, for which the network makes one feature. Few places hold a vertebra,
and those count all; of the others some are drawn, and each of them stands for all that were not.
The loss is an unbiased estimate of that over all voxels, for a fraction of the work and memory.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from storage_schemas.localizer_card import CLASSES
from training.localizer.unet import fold_blocks

SAMPLED_SHARE = 1 / 16
"""Of the places without a vertebra."""
_SMOOTH = 1.0
"""Voxels that keep the Dice of a level that is hardly there from jumping."""


@dataclass(frozen=True)
class Places:
    """Chosen places of a batch.

    Parameters
    ----------
    sample, place : Tensor, shape (places,), int64
        Which overview, and which of its places, (z, y, x) flattened.
    classes : Tensor, shape (places, block^3), int64
        The truth of their voxels.
    weight : Tensor, shape (places,), float32
        How many places each stands for.
    """

    sample: Tensor
    place: Tensor
    classes: Tensor
    weight: Tensor


def sample_places(classes: Tensor, block: int, generator: torch.Generator) -> Places:
    """Choose places.

    Parameters
    ----------
    classes : Tensor, shape (batch, 1, S, S, S), int64
    block : int
        Voxels along each side of a place.
    generator : torch.Generator
        On the CPU.
    """
    voxels = fold_blocks(classes, block).flatten(2).transpose(1, 2)
    holds = (voxels > 0).any(dim=2)
    uniform = torch.rand(holds.shape, generator=generator).to(holds.device)
    sampled = ~holds & (uniform < SAMPLED_SHARE)
    sample, place = (holds | sampled).nonzero(as_tuple=True)
    weight = torch.where(holds[sample, place], 1.0, 1 / SAMPLED_SHARE)
    return Places(sample, place, voxels[sample, place], weight)


def place_loss(logits: Tensor, places: Places) -> Tensor:
    """Cross-entropy and Dice loss (Milletari et al., V-Net, 3DV 2016), summed.

    Parameters
    ----------
    logits : Tensor, shape (places, classes, block^3), float32
    places : Places

    Returns
    -------
    Tensor, scalar
        Dice is over the whole batch, and over the levels that are there.
    """
    weight = places.weight[:, None]
    entropy = functional.cross_entropy(logits, places.classes, reduction="none")
    entropy = (entropy * weight).sum() / (weight.sum() * entropy.shape[1])
    probabilities = logits.softmax(dim=1)
    truth = functional.one_hot(places.classes, len(CLASSES)).transpose(1, 2)
    hits, found, there = (
        (of * weight[:, None]).sum(dim=(0, 2))[1:]
        for of in (probabilities * truth, probabilities, truth)
    )
    dice = (2 * hits + _SMOOTH) / (found + there + _SMOOTH)
    return entropy + 1 - dice[there > 0].mean() if bool(there.any()) else entropy
