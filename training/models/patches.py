"""What each patch of an input says on its own, and how drawn boxes judge it.

A thin fracture fills a few patches of an input, and one bit a slice hardly tells a model made from
random weights which. The classifier that a model has anyway reads the features of one patch as well
as those of all: no weight is added, and the saved model is the plain one.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from training.models.encoders import read_classifier, read_features
from training.models.families import FAMILIES

_ENOUGH = 3
"""Patches of a fracture that are to be worth a slice's whole logit, where a model takes means."""
_INSIDE, _OUTSIDE = 0.15, 0.02
"""How much of a patch a box covers, at least and at most; what lies between is not judged."""
_SHARPNESS = 1.5
"""Of the smooth maximum over patches."""
_PATCH_WEIGHT = 0.3
"""Of each patch outside, beside the largest of its slice."""


def has_patch_logits(encoder: PreTrainedModel) -> bool:
    """Whether the classifier of an encoder's pooled features reads those of a patch as well."""
    return encoder.config.model_type in FAMILIES


def patch_logits(patches: Tensor, head: nn.Linear, encoder: PreTrainedModel) -> Tensor:
    """The logit of each patch, shape (batch, patches), row by row.

    Where a class token is read, it is what the classifier makes of the patch in place of the token.
    Where the mean of the patches is read, it is the logit which it would have if as few patches as
    `_ENOUGH` were like this one and the others said nothing.

    Parameters
    ----------
    patches : Tensor, shape (batch, patches, features)
    head : nn.Linear
        The classifier, of one logit.
    encoder : PreTrainedModel
    """
    if FAMILIES[encoder.config.model_type].pooled == "token":
        return head(patches)[..., 0]
    share = _ENOUGH / patches.shape[1]
    return share * (patches @ head.weight[0]) + head.bias[0]


class PatchReader:
    """Reads the features of the patches whenever a model of a known family runs.

    Parameters
    ----------
    model : PreTrainedModel
        One of `reads`; read until `close`.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._features: Tensor | None = None
        self._hook = model.base_model.register_forward_hook(self._keep)

    @staticmethod
    def reads(model: PreTrainedModel) -> bool:
        """Whether the features of this model have a place in the input."""
        family = FAMILIES.get(model.config.model_type)
        return family is not None and family.boxes

    def close(self) -> None:
        """Leave the model as it was."""
        self._hook.remove()
        self._features = None

    def _keep(self, module: Any, arguments: Any, output: Any) -> None:
        self._features = read_features(output).patches

    def logits(self) -> Tensor:
        """The logit of each patch of the last input; see `patch_logits`."""
        if self._features is None:
            raise RuntimeError("the model did not run yet")
        return patch_logits(self._features, read_classifier(self._model), self._model)


def box_loss(logits: Tensor, covered: Tensor, intact: Tensor) -> Tensor:
    """Ask for one broken patch in each drawn box, and for none outside.

    A box is a bag: it holds the fracture and much beside it, so its patches are judged by their
    smooth maximum (multiple-instance learning; Pinheiro and Collobert, CVPR 2015,
    doi:10.1109/CVPR.2015.7298780). A slice that shows a fracture which nobody drew says nothing.

    Parameters
    ----------
    logits, covered : Tensor, shape (batch, patches), float32
        Of `PatchReader.logits`, and how much of each patch lies in a box.
    intact : Tensor, shape (batch,), bool
        The slice shows no fracture.
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
