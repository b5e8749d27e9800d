"""Image encoders of transformers, whichever family: made, started from a folder, widened, read.

A family is never asked for by name where its output tells: features with a height and a width are a
map and pooled by the encoder itself, tokens beyond a square number are class and register tokens,
and the first of them is the pooled feature where the encoder has no pooling of its own.

Extra input channels and other input sizes keep every pretrained weight: the kernel of the first
convolution is kept and the new channels start at zero, and position embeddings are interpolated.
"""

import inspect
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MODEL_MAPPING, AutoModel, PreTrainedConfig, PreTrainedModel

from storage_schemas.errors import UsageError
from training.config import InputConfig, ModelConfig
from training.models.slice_model import (
    build_model,
    load_checkpoint,
    read_normalisation,
)


@dataclass(frozen=True)
class EncoderFeatures:
    """What an encoder says of some inputs.

    Parameters
    ----------
    pooled : Tensor, shape (inputs, features)
        Of each whole input.
    patches : Tensor, shape (inputs, patches, features)
        Of each place of it, row by row; a square number of patches.
    averaged : bool
        Whether `pooled` is a mean over the patches, and not a token of its own.
    """

    pooled: Tensor
    patches: Tensor
    averaged: bool


def make_encoder(config: PreTrainedConfig) -> PreTrainedModel:
    """Make an encoder with random weights, without a pooler that no loss would train."""
    return AutoModel.from_config(config, **_options(config))


def build_encoder(
    config: ModelConfig, inputs: InputConfig, seed: int
) -> tuple[PreTrainedModel, nn.Linear]:
    """Make the very encoder and classifier of a slice model of these settings, of random weights.

    Raises
    ------
    UsageError
        ``config-invalid`` where its patches do not fill the input.
    """
    model = build_model(config, replace(inputs, neighbours=3, mask=False), seed)
    return widen_channels(model.base_model, inputs.channels), read_classifier(model)


def read_classifier(model: PreTrainedModel) -> nn.Linear:
    """The layer of a slice model that makes one logit of its features."""
    return [layer for layer in model.classifier.modules() if isinstance(layer, nn.Linear)][-1]


def start_encoder(
    folder: Path, inputs: InputConfig
) -> tuple[PreTrainedModel, dict[str, tuple[float, ...]]]:
    """Start from the encoder of any local image model: an encoder alone, or a classifier.

    Returns
    -------
    PreTrainedModel
        With as many input channels as `inputs` asks for.
    dict
        ``mean`` and ``std`` of the checkpoint's own normalisation, where it states them.

    Raises
    ------
    UsageError
        ``model-invalid`` where the folder is no such checkpoint, has only pickled weights, or
        lacks weights of the encoder.
    """

    def options(config: PreTrainedConfig) -> dict[str, bool]:
        count_features(config)  # fails here where a model is no encoder of images
        return _options(config)

    encoder = load_checkpoint(folder, AutoModel, "pooler.", options)
    return widen_channels(encoder, inputs.channels), read_normalisation(folder)


def _options(config: PreTrainedConfig) -> dict[str, bool]:
    made = MODEL_MAPPING[type(config)]
    takes = inspect.signature(made.__init__).parameters
    return {"add_pooling_layer": False} if "add_pooling_layer" in takes else {}


def count_features(config: PreTrainedConfig) -> int:
    """How many features an encoder of this configuration gives for an input."""
    if sizes := getattr(config, "hidden_sizes", None):
        return int(sizes[-1])
    return int(config.hidden_size)


def widen_channels(encoder: PreTrainedModel, channels: int) -> PreTrainedModel:
    """Give the first convolution so many input channels, in place; what it had it keeps.

    The kernels of new channels are zero: whatever they show, the features are at first those of
    the old channels, and the first gradient step already reaches them.

    Raises
    ------
    UsageError
        ``config-invalid`` where the encoder has more channels than that, or no convolution.
    """
    old = int(getattr(encoder.config, "num_channels", 0))
    if channels == old:
        return encoder
    for parent in encoder.modules():
        for name, layer in parent.named_children():
            if isinstance(layer, nn.Conv2d) and layer.in_channels == old < channels:
                parent.register_module(name, _widened(layer, channels))
                for module in encoder.modules():
                    if getattr(module, "num_channels", None) == old:
                        module.num_channels = channels
                encoder.config.num_channels = channels
                return encoder
    raise UsageError("config-invalid", f"an encoder of {old} channels cannot get {channels}")


def _widened(layer: nn.Conv2d, channels: int) -> nn.Conv2d:
    wide = nn.Conv2d(
        channels,
        layer.out_channels,
        layer.kernel_size,  # type: ignore[arg-type]
        layer.stride,  # type: ignore[arg-type]
        layer.padding,  # type: ignore[arg-type]
        bias=layer.bias is not None,
    )
    with torch.no_grad():
        wide.weight.zero_()
        wide.weight[:, : layer.in_channels] = layer.weight
        if wide.bias is not None and layer.bias is not None:
            wide.bias.copy_(layer.bias)
    return wide


def run_encoder(encoder: PreTrainedModel, pixels: Tensor, **options: bool) -> Any:
    """The encoder's own output, its position embeddings interpolated where the size is another.

    Parameters
    ----------
    encoder : PreTrainedModel
    pixels : Tensor, shape (inputs, channels, size, size)
        Normalised; of any size that the family can take.
    **options
        Of its forward, such as ``output_attentions``.
    """
    if "interpolate_pos_encoding" in inspect.signature(encoder.forward).parameters:
        options["interpolate_pos_encoding"] = True
    return encoder(pixel_values=pixels, return_dict=True, **options)


def read_features(output: Any) -> EncoderFeatures:
    """Sort the output of an encoder into what it says of whole inputs and of their patches."""
    features = output.last_hidden_state
    if features.ndim == 4:
        patches, tokens = features.flatten(2).transpose(1, 2), 0
    else:
        tokens = features.shape[1] - math.isqrt(features.shape[1]) ** 2
        patches = features[:, tokens:]
    pooled = getattr(output, "pooler_output", None)
    pooled = features[:, 0] if pooled is None else pooled.flatten(1)
    return EncoderFeatures(pooled, patches, averaged=not tokens)
