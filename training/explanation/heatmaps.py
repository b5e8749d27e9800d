"""Where in a slice a model saw what it says: heat maps, for slice models and for sequence models.

An encoder with a class token tells by the relevance of its attention: over the layers, the positive
part of attention times its gradient, averaged over heads, is carried from the class token to the
patches (Chefer, Gur and Wolf, ICCV 2021, doi:10.1109/ICCV48922.2021.00045). Any other tells by its
last features, each weighted by the mean of its gradient (Selvaraju et al., ICCV 2017,
doi:10.1109/ICCV.2017.74). What is asked about is the logit of the slice, or, for a sequence model,
that of its vertebra, so that slices of one vertebra can be compared.

A heat map shows what moved the model, not what is broken.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from training.models.encoders import read_features


def explain(model: PreTrainedModel, pixels: Tensor, valid: Tensor | None = None) -> Tensor:
    """Draw a heat map for each input.

    Parameters
    ----------
    model : PreTrainedModel
        A slice model; a sequence model where `valid` is given.
    pixels : Tensor, shape (slices, channels, size, size), float32
        Normalised, on the model's device.
    valid : Tensor, shape (patients, 7, positions), bool, optional
        Which position each slice is.

    Returns
    -------
    Tensor, shape (slices, size, size), float32
        0 and more; comparable within a vertebra, and for a slice model within a slice.
    """
    encoder = model.base_model if valid is None else model.encoder
    model.eval()
    with _watching(encoder) as seen, torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
        shown = pixels.detach().requires_grad_(True)
        if valid is None:
            asked = model(pixel_values=shown).logits[:, 0]
        else:
            asked = model(pixel_values=shown, valid=valid).vertebra_logits[valid.any(dim=2)]
        output = seen[-1]
        features = read_features(output)
        if _attends(encoder):
            heat = _relevance(asked.sum(), output.attentions, features.patches.shape[1])
        else:
            heat = _activation(asked.sum(), output.last_hidden_state)
    side = math.isqrt(heat.shape[1])
    return functional.interpolate(
        heat.detach().float().view(-1, 1, side, side), pixels.shape[2:], mode="bilinear"
    )[:, 0]


def _attends(encoder: PreTrainedModel) -> bool:
    """Whether one class token attends to all patches; windows have heads of their own each."""
    return isinstance(getattr(encoder.config, "num_attention_heads", None), int)


@contextmanager
def _watching(encoder: PreTrainedModel) -> Iterator[list[Any]]:
    """Collect the encoder's outputs, with its attentions where it has some; then undo all."""
    seen: list[Any] = []
    before = encoder.config._attn_implementation, encoder.config.output_attentions
    if _attends(encoder):
        # Fused kernels do not say what they attend to.
        encoder.set_attn_implementation("eager")
        encoder.config.output_attentions = True
    hook = encoder.register_forward_hook(lambda module, arguments, output: seen.append(output))
    try:
        yield seen
    finally:
        hook.remove()
        if _attends(encoder):
            encoder.config.output_attentions = before[1]
            encoder.set_attn_implementation(before[0])


def _relevance(asked: Tensor, attentions: tuple[Tensor, ...], patches: int) -> Tensor:
    """Of each patch for the class token, shape (slices, patches)."""
    gradients = torch.autograd.grad(asked, attentions)
    tokens = attentions[0].shape[-1]
    relevance = torch.eye(tokens, device=asked.device).expand(len(attentions[0]), -1, -1)
    for attention, gradient in zip(attentions, gradients, strict=True):
        relevance = relevance + (attention * gradient).clamp(min=0).mean(dim=1) @ relevance
    return relevance[:, 0, tokens - patches :]


def _activation(asked: Tensor, features: Tensor) -> Tensor:
    """Of each patch, shape (slices, patches)."""
    (gradient,) = torch.autograd.grad(asked, [features])
    if features.ndim == 4:
        features, gradient = (each.flatten(2).transpose(1, 2) for each in (features, gradient))
    return (features * gradient.mean(dim=1, keepdim=True)).sum(dim=2).clamp(min=0)
