"""Families of image encoders: how a new one is made, and how its classifier reads patches.

The key is the ``model_type`` of a transformers configuration. Any other family can be a checkpoint
to start from: its classifier is not asked about patches. Settings of a new model are checked in
`training.config.ModelConfig`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from transformers import (
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from training.config import InputConfig, ModelConfig


@dataclass(frozen=True)
class EncoderFamily:
    """What is known of a family.

    Parameters
    ----------
    pooled : {"token", "mean"}
        Whether the classifier reads the features of a class token, or the mean over the patches.
        Either way it can read those of a single patch.
    build : callable or None
        Makes a classifier of slices with random weights from the model's and the inputs' settings
        and the options of its head; None where new models of this family cannot be made.
    boxes : bool
        Whether a slice model of this family learns from drawn boxes.
    """

    pooled: Literal["token", "mean"]
    build: Callable[[ModelConfig, InputConfig, Mapping[str, Any]], PreTrainedModel] | None = None
    boxes: bool = False


def _build_vit(
    config: ModelConfig, inputs: InputConfig, head: Mapping[str, Any]
) -> PreTrainedModel:
    return ViTForImageClassification(
        ViTConfig(
            image_size=inputs.size,
            patch_size=config.patch,
            hidden_size=config.width,
            intermediate_size=4 * config.width,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            **head,
        )
    )


def _build_resnet(
    config: ModelConfig, inputs: InputConfig, head: Mapping[str, Any]
) -> PreTrainedModel:
    # The stem sees every fourth pixel, and each stage after the first every second of those.
    stages = int(math.log2(config.patch)) - 1
    widths = [config.width >> stage for stage in reversed(range(stages))]
    return ResNetForImageClassification(
        ResNetConfig(
            embedding_size=widths[0],
            hidden_sizes=widths,
            depths=[config.depth] * stages,
            layer_type="basic",
            **head,
        )
    )


FAMILIES: Mapping[str, EncoderFamily] = MappingProxyType(
    {
        "vit": EncoderFamily("token", _build_vit, boxes=True),
        "resnet": EncoderFamily("mean", _build_resnet, boxes=True),
        "dinov2": EncoderFamily("token"),
        "swin": EncoderFamily("mean"),
    }
)
"""The families by ``model_type``; `training.config.Family` names those that can be made."""
