"""Image encoders of transformers: building, loading, adding input channels, and reading features.

Features are read by their shape, not by the model family: features with height and width are a
feature map that the encoder pools itself; tokens beyond a square number are class and register
tokens, and the first of them is the pooled feature if the encoder has no pooling.

Pretrained weights are kept for other numbers of channels and input sizes: the kernel of the first
convolution is extended by zeros, and position embeddings are interpolated.
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
    """Features of an encoder.

    Parameters
    ----------
    pooled : Tensor, shape (inputs, features)
        Pooled feature of each input.
    patches : Tensor, shape (inputs, patches, features)
        Features of each patch, row by row; the number of patches is a square.
    averaged : bool
        Whether `pooled` is the mean over the patches rather than a token.
    """

    pooled: Tensor
    patches: Tensor
    averaged: bool


def make_encoder(config: PreTrainedConfig) -> PreTrainedModel:
    """Build an encoder with random weights, without an unused pooling layer."""
    return AutoModel.from_config(config, **_options(config))


def build_encoder(
    config: ModelConfig, inputs: InputConfig, seed: int
) -> tuple[PreTrainedModel, nn.Linear]:
    """Build the encoder and the classifier of a new slice model.

    Parameters
    ----------
    config : ModelConfig
        Family and size of the model.
    inputs : InputConfig
        Size and channels of the input.
    seed : int
        Seed of the weights.

    Raises
    ------
    UsageError
        ``config-invalid`` if the patches do not fill the input.
    """
    model = build_model(config, replace(inputs, neighbours=3, mask=False), seed)
    return widen_channels(model.base_model, inputs.channels), read_classifier(model)


def read_classifier(model: PreTrainedModel) -> nn.Linear:
    """Return the layer of a slice model that maps features to one logit."""
    return [layer for layer in model.classifier.modules() if isinstance(layer, nn.Linear)][-1]


def start_encoder(
    folder: Path, inputs: InputConfig
) -> tuple[PreTrainedModel, dict[str, tuple[float, ...]]]:
    """Load the encoder of a local image model, with or without a classifier.

    Parameters
    ----------
    folder : Path
        Folder of the checkpoint.
    inputs : InputConfig
        Channels of the input.

    Returns
    -------
    encoder : PreTrainedModel
        Encoder with the requested number of input channels.
    normalisation : dict
        ``mean`` and ``std`` of the checkpoint, if it has them.

    Raises
    ------
    UsageError
        ``model-invalid`` if the folder is not such a checkpoint, has only pickled weights, or lacks
        weights of the encoder.
    """

    def options(config: PreTrainedConfig) -> dict[str, bool]:
        count_features(config)  # raises for models that are not image encoders
        return _options(config)

    encoder = load_checkpoint(folder, AutoModel, "pooler.", options)
    return widen_channels(encoder, inputs.channels), read_normalisation(folder)


def _options(config: PreTrainedConfig) -> dict[str, bool]:
    made = MODEL_MAPPING[type(config)]
    takes = inspect.signature(made.__init__).parameters
    return {"add_pooling_layer": False} if "add_pooling_layer" in takes else {}


def count_features(config: PreTrainedConfig) -> int:
    """Return the number of features of an encoder's output."""
    if sizes := getattr(config, "hidden_sizes", None):
        return int(sizes[-1])
    return int(config.hidden_size)


def widen_channels(encoder: PreTrainedModel, channels: int) -> PreTrainedModel:
    """Extend the first convolution to `channels` input channels, in place.

    The kernels of new channels are zero, so the features are unchanged at first, and gradients
    reach the new kernels from the first step.

    Raises
    ------
    UsageError
        ``config-invalid`` if the encoder has more channels, or no convolution.
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
    raise UsageError("config-invalid", f"cannot extend an encoder of {old} channels to {channels}")


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
    """Run an encoder, interpolating its position embeddings to the input size.

    Parameters
    ----------
    encoder : PreTrainedModel
        Encoder of any family.
    pixels : Tensor, shape (inputs, channels, size, size)
        Normalised inputs.
    **options
        Options of the encoder's forward, such as ``output_attentions``.
    """
    if "interpolate_pos_encoding" in inspect.signature(encoder.forward).parameters:
        options["interpolate_pos_encoding"] = True
    return encoder(pixel_values=pixels, return_dict=True, **options)


def read_features(output: Any) -> EncoderFeatures:
    """Split the output of an encoder into pooled features and patch features."""
    features = output.last_hidden_state
    if features.ndim == 4:
        patches, tokens = features.flatten(2).transpose(1, 2), 0
    else:
        tokens = features.shape[1] - math.isqrt(features.shape[1]) ** 2
        patches = features[:, tokens:]
    pooled = getattr(output, "pooler_output", None)
    pooled = features[:, 0] if pooled is None else pooled.flatten(1)
    return EncoderFeatures(pooled, patches, averaged=not tokens)
