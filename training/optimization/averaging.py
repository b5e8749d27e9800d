"""The exponential moving average (EMA) of weights, and batch statistics for averaged weights.

Whether the EMA or the last weights are kept is decided in `training.rounds.candidates`.
"""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel, update_bn

from training.devices import device


def start_ema(model: nn.Module, keep: float) -> AveragedModel:
    """Start an exponential moving average of a model's parameters (Polyak and Juditsky, 1992).

    The n-th update has the decay ``min(keep, n / (n + 9))``, so that the initial weights are soon
    forgotten. This is the rule of TensorFlow's ``ExponentialMovingAverage`` with ``num_updates``.

    Parameters
    ----------
    model : Module
        Model whose weights the average starts from; buffers of the average follow the model's.
    keep : float
        Largest decay of an update, from 0 to 1.

    Returns
    -------
    AveragedModel
        Model whose ``update_parameters(model)`` is called after each step; ``module`` holds the
        average.
    """

    def follow(means: Any, weights: Any, updates: Any) -> None:
        kept = min(keep, int(updates) / (int(updates) + 9))
        for mean, new in zip(means, weights, strict=True):
            mean.lerp_(new, 1 - kept)

    ema = AveragedModel(model, multi_avg_fn=follow)
    resume_ema(ema, 0)
    return ema


def resume_ema(ema: AveragedModel, updates: int) -> None:
    """Set the number of updates of an EMA whose weights the caller has restored."""
    ema.n_averaged.fill_(1 + updates)  # the initial weights count as the first update


def keeps_statistics(model: nn.Module) -> bool:
    """Return whether a model has batch normalisation layers."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def recount_statistics(model: nn.Module, inputs: Iterable[Tensor]) -> None:
    """Recompute the batch-normalisation statistics of a model as their mean over some batches.

    The average of two networks' statistics does not fit the averaged weights (Izmailov et al.,
    Averaging Weights Leads to Wider Optima, UAI 2018, section 3.2).

    Parameters
    ----------
    model : Module
        Model that is called with each batch; it is moved to the device and left in evaluation mode.
    inputs : iterable of Tensor
        Batches on the device.
    """
    update_bn(inputs, model.to(device()))
    model.eval()
