"""Families of image encoders: how a new model is built, and how patch logits are computed.

Keys are the ``model_type`` of transformers configurations. Other families can be used as
checkpoints to start from, without patch logits. `training.config.ModelConfig` checks the settings
of new models.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from transformers import (
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from presentation.setting_types import convert
from training.config import InputConfig, ModelConfig


@dataclass(frozen=True)
class EncoderFamily:
    """Properties of a family.

    Parameters
    ----------
    pooled : {"token", "mean"}
        Whether the classifier reads a class token or the mean over the patches; it can be applied
        to the features of a single patch in both cases.
    build : callable or None
        Builds a slice classifier with random weights from the model settings, the input settings
        and the options of its head; None if new models of the family are not supported.
    boxes : bool
        Whether slice models of the family train on bounding boxes.
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
    # The stem has stride 4, and each stage after the first has stride 2.
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


FAMILIES: dict[str, EncoderFamily] = {
    "vit": EncoderFamily("token", _build_vit, boxes=True),
    "resnet": EncoderFamily("mean", _build_resnet, boxes=True),
    "dinov2": EncoderFamily("token"),
    "swin": EncoderFamily("mean"),
}
"""Families by ``model_type``."""


def build_encoder(
    config: ModelConfig, inputs: InputConfig, head: Mapping[str, Any]
) -> PreTrainedModel:
    """Build a slice classifier with random weights.

    Parameters
    ----------
    config : ModelConfig
        Family and size of the model.
    inputs : InputConfig
        Size and channels of the input.
    head : mapping
        Options of the head, for the configuration of transformers.

    Raises
    ------
    UsageError
        ``config-invalid`` if the family is unknown, or new models of it are not supported.
    """
    known = {name: family.build for name, family in FAMILIES.items() if family.build}
    return known[convert(config.family, str, "model.family", known)](config, inputs, head)
