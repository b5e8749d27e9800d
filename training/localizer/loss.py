"""Dice and cross-entropy loss of a localizer on sampled blocks of voxels.

The network computes one feature for each block of voxels, called a place. All places that contain
vertebrae are used, and a sample of the others with inverse-probability weights. The loss is an
unbiased estimate of the loss over all voxels, at a fraction of the time and memory.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from storage_schemas.localizer_card import CLASSES
from training.localizer.unet import fold_blocks

SAMPLED_SHARE = 1 / 16
"""Fraction of the places without vertebrae that is sampled."""
_SMOOTH = 1.0
"""Voxels added to numerator and denominator of the Dice score, for levels with few voxels."""


@dataclass(frozen=True)
class Places:
    """Sampled places of a batch.

    Parameters
    ----------
    sample : Tensor, shape (places,), int64
        Index of the overview in the batch.
    place : Tensor, shape (places,), int64
        Index of the place in the overview, (z, y, x) flattened.
    classes : Tensor, shape (places, block^3), int64
        True classes of the voxels.
    weight : Tensor, shape (places,), float32
        Number of places that each sampled place represents.
    """

    sample: Tensor
    place: Tensor
    classes: Tensor
    weight: Tensor


def sample_places(classes: Tensor, block: int, generator: torch.Generator) -> Places:
    """Sample the places that the loss is computed on.

    Parameters
    ----------
    classes : Tensor, shape (batch, 1, S, S, S), int64
        True classes of the voxels.
    block : int
        Side of a place in voxels.
    generator : torch.Generator
        Random generator on the CPU.
    """
    voxels = fold_blocks(classes, block).flatten(2).transpose(1, 2)
    holds = (voxels > 0).any(dim=2)
    uniform = torch.rand(holds.shape, generator=generator).to(holds.device)
    sampled = ~holds & (uniform < SAMPLED_SHARE)
    sample, place = (holds | sampled).nonzero(as_tuple=True)
    weight = torch.where(holds[sample, place], 1.0, 1 / SAMPLED_SHARE)
    return Places(sample, place, voxels[sample, place], weight)


def place_loss(logits: Tensor, places: Places) -> Tensor:
    """Compute the sum of cross-entropy and Dice loss (Milletari et al., V-Net, 3DV 2016).

    Parameters
    ----------
    logits : Tensor, shape (places, classes, block^3), float32
        Logits of the voxels' classes.
    places : Places
        Sampled places, with their true classes.

    Returns
    -------
    Tensor, scalar
        Loss; the Dice loss is computed over the whole batch and averaged over the levels in it.
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
