"""The EMA of the weights while they are trained, and batch statistics for averaged weights.

Not for choosing between the EMA and the last weights: `training.rounds.candidates` does.
"""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel, update_bn

from training.devices import device


def start_ema(model: nn.Module, keep: float) -> AveragedModel:
    """Start an exponential moving average of a model's parameters (Polyak and Juditsky, 1992).

    The n-th update keeps ``min(keep, n / (n + 9))`` of the average, so that random weights of the
    start are soon forgotten. It is the rule of TensorFlow's ``ExponentialMovingAverage`` with
    ``num_updates``.

    Parameters
    ----------
    model : Module
        The weights that the average starts from; buffers of the average follow the model's.
    keep : float
        Share of the average that an update keeps at most, in 0 to 1.

    Returns
    -------
    AveragedModel
        Call its ``update_parameters(model)`` after each step; ``module`` holds the average.
    """

    def follow(means: Any, weights: Any, updates: Any) -> None:
        kept = min(keep, int(updates) / (int(updates) + 9))
        for mean, new in zip(means, weights, strict=True):
            mean.lerp_(new, 1 - kept)

    ema = AveragedModel(model, multi_avg_fn=follow)
    resume_ema(ema, 0)
    return ema


def resume_ema(ema: AveragedModel, updates: int) -> None:
    """Continue an EMA after so many updates; its weights are set by the caller."""
    ema.n_averaged.fill_(1 + updates)  # the weights of the start count as the first


def keeps_statistics(model: nn.Module) -> bool:
    """Whether a model has batch normalisations, which keep statistics of their inputs."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def recount_statistics(model: nn.Module, inputs: Iterable[Tensor]) -> None:
    """Set the statistics of a model's batch normalisations to their mean over some batches.

    The mean of two networks' statistics is not what the network between them sees (Izmailov et al.,
    Averaging Weights Leads to Wider Optima, UAI 2018, section 3.2).

    Parameters
    ----------
    model : Module
        Called with each batch; moved to the device, and in evaluation mode afterwards.
    inputs : iterable of Tensor
        Batches on the device.
    """
    update_bn(inputs, model.to(device()))
    model.eval()
