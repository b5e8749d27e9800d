"""Logits of single patches, and the loss of annotated bounding boxes on them.

A thin fracture covers few patches of an input, and a slice label alone is a weak signal for a model
with random weights. The model's classifier is applied to the features of each patch, so no weights
are added and the saved model is unchanged.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from training.models.encoders import read_classifier, read_features
from training.models.families import FAMILIES

_ENOUGH = 3
"""Number of fractured patches that produce a slice's full logit in mean-pooling models."""
_INSIDE, _OUTSIDE = 0.15, 0.02
"""Coverage of a patch by a box: positive from the first value on, negative up to the second."""
_SHARPNESS = 1.5
"""Sharpness of the smooth maximum over patches."""
_PATCH_WEIGHT = 0.3
"""Weight of the mean loss over negative patches, relative to the largest of each slice."""


def has_patch_logits(encoder: PreTrainedModel) -> bool:
    """Return whether an encoder's classifier can be applied to single patches."""
    return encoder.config.model_type in FAMILIES


def patch_logits(patches: Tensor, head: nn.Linear, encoder: PreTrainedModel) -> Tensor:
    """Compute the logit of each patch, shape (batch, patches), row by row.

    With a class token, the classifier is applied to the patch features in place of the token. With
    mean pooling, the logit is that of an input in which `_ENOUGH` patches have these features and
    all others are zero.

    Parameters
    ----------
    patches : Tensor, shape (batch, patches, features)
        Patch features of the encoder.
    head : nn.Linear
        Classifier with one logit.
    encoder : PreTrainedModel
        Encoder that the features come from.
    """
    if FAMILIES[encoder.config.model_type].pooled == "token":
        return head(patches)[..., 0]
    share = _ENOUGH / patches.shape[1]
    return share * (patches @ head.weight[0]) + head.bias[0]


class PatchReader:
    """Records the patch features of a model in each forward pass.

    Parameters
    ----------
    model : PreTrainedModel
        Model for which `reads` is true; recording ends with `close`.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._features: Tensor | None = None
        self._hook = model.base_model.register_forward_hook(self._keep)

    @staticmethod
    def reads(model: PreTrainedModel) -> bool:
        """Return whether patch features of this model can be recorded."""
        family = FAMILIES.get(model.config.model_type)
        return family is not None and family.boxes

    def close(self) -> None:
        """Remove the hook from the model."""
        self._hook.remove()
        self._features = None

    def _keep(self, module: Any, arguments: Any, output: Any) -> None:
        self._features = read_features(output).patches

    def logits(self) -> Tensor:
        """Return the patch logits of the last forward pass; see `patch_logits`."""
        if self._features is None:
            raise RuntimeError("logits need a forward pass of the model first")
        return patch_logits(self._features, read_classifier(self._model), self._model)


def box_loss(logits: Tensor, covered: Tensor, intact: Tensor) -> Tensor:
    """Compute the loss of bounding boxes: a positive patch inside each box, none outside.

    A box also contains intact bone, so its patches are a bag of multiple-instance learning, reduced
    by a smooth maximum (Pinheiro and Collobert, CVPR 2015, doi:10.1109/CVPR.2015.7298780).
    Fractured slices without a box are ignored.

    Parameters
    ----------
    logits : Tensor, shape (batch, patches), float32
        Patch logits from `PatchReader.logits`.
    covered : Tensor, shape (batch, patches), float32
        Fraction of each patch that lies in a box.
    intact : Tensor, shape (batch,), bool
        Whether the slice is labelled as showing no fracture.
    """
    inside, outside = covered > _INSIDE, covered <= _OUTSIDE
    boxed = inside.any(dim=1)
    outside = outside & (boxed | intact)[:, None]
    fractured = functional.softplus(-_smooth_maximum(logits, inside))
    largest = functional.softplus(_smooth_maximum(logits, outside))
    return (
        _mean(fractured, boxed)
        + _mean(largest, intact)
        + _PATCH_WEIGHT * _mean(functional.softplus(logits), outside)
    )


def _smooth_maximum(logits: Tensor, of: Tensor) -> Tensor:
    hidden = logits.masked_fill(~of, torch.finfo(logits.dtype).min / _SHARPNESS / 2)
    return torch.logsumexp(_SHARPNESS * hidden, dim=1) / _SHARPNESS


def _mean(losses: Tensor, of: Tensor) -> Tensor:
    return losses.masked_fill(~of, 0).sum() / of.sum().clamp(min=1)
