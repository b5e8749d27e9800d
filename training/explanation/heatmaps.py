"""Heat maps of slice models and sequence models.

For encoders with a class token the map is attention relevance: over the layers, the positive part
of attention times its gradient, averaged over heads, is propagated from the class token to the
patches (Chefer, Gur and Wolf, ICCV 2021, doi:10.1109/ICCV48922.2021.00045). For other encoders it
is Grad-CAM: the last features, weighted by the mean of their gradient (Selvaraju et al., ICCV 2017,
doi:10.1109/ICCV.2017.74). The gradient is that of the slice's logit, or, in a sequence model, of
the vertebra's logit, so that slices of one vertebra are comparable.

A heat map shows the influence of image regions on the prediction, not the location of the fracture.
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
    """Compute a heat map for each input.

    Parameters
    ----------
    model : PreTrainedModel
        Slice model, or a sequence model if `valid` is given.
    pixels : Tensor, shape (slices, channels, size, size), float32
        Normalised inputs, on the model's device.
    valid : Tensor, shape (patients, levels, positions), bool, optional
        Positions of a sequence model that the slices fill, in order.

    Returns
    -------
    Tensor, shape (slices, size, size), float32
        Non-negative relevance, comparable within a vertebra, and for a slice model within a slice.
    """
    encoder = model.base_model if valid is None else model.encoder
    model.eval()
    with (
        _record_outputs(encoder) as outputs,
        torch.enable_grad(),
        torch.backends.cudnn.flags(enabled=False),
    ):
        inputs = pixels.detach().requires_grad_(True)
        if valid is None:
            logits = model(pixel_values=inputs).logits[:, 0]
        else:
            logits = model(pixel_values=inputs, valid=valid).vertebra_logits[valid.any(dim=2)]
        output = outputs[-1]
        features = read_features(output)
        if _has_class_attention(encoder):
            heat = _relevance(logits.sum(), output.attentions, features.patches.shape[1])
        else:
            heat = _activation(logits.sum(), output.last_hidden_state)
    side = math.isqrt(heat.shape[1])
    return functional.interpolate(
        heat.detach().float().view(-1, 1, side, side), pixels.shape[2:], mode="bilinear"
    )[:, 0]


def _has_class_attention(encoder: PreTrainedModel) -> bool:
    """Return whether one class token attends to all patches; windowed attention has none."""
    return isinstance(getattr(encoder.config, "num_attention_heads", None), int)


@contextmanager
def _record_outputs(encoder: PreTrainedModel) -> Iterator[list[Any]]:
    """Record the encoder's outputs, with attentions if it has a class token, within the block."""
    outputs: list[Any] = []
    before = encoder.config._attn_implementation, encoder.config.output_attentions
    if _has_class_attention(encoder):
        # Fused kernels do not return attention weights.
        encoder.set_attn_implementation("eager")
        encoder.config.output_attentions = True
    hook = encoder.register_forward_hook(lambda module, arguments, output: outputs.append(output))
    try:
        yield outputs
    finally:
        hook.remove()
        if _has_class_attention(encoder):
            encoder.config.output_attentions = before[1]
            encoder.set_attn_implementation(before[0])


def _relevance(logits: Tensor, attentions: tuple[Tensor, ...], patches: int) -> Tensor:
    """Compute the relevance of each patch for the class token, shape (slices, patches)."""
    gradients = torch.autograd.grad(logits, attentions)
    tokens = attentions[0].shape[-1]
    relevance = torch.eye(tokens, device=logits.device).expand(len(attentions[0]), -1, -1)
    for attention, gradient in zip(attentions, gradients, strict=True):
        relevance = relevance + (attention * gradient).clamp(min=0).mean(dim=1) @ relevance
    return relevance[:, 0, tokens - patches :]


def _activation(logits: Tensor, features: Tensor) -> Tensor:
    """Compute the gradient-weighted activation of each patch, shape (slices, patches)."""
    (gradient,) = torch.autograd.grad(logits, [features])
    if features.ndim == 4:
        features, gradient = (each.flatten(2).transpose(1, 2) for each in (features, gradient))
    return (features * gradient.mean(dim=1, keepdim=True)).sum(dim=2).clamp(min=0)
