"""The learning rate along the steps of a training."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_cosine_schedule_with_warmup


def warmup_cosine(optimizer: Optimizer, warmup: int, steps: int, done: int = 0) -> LambdaLR:
    """Raise each group's learning rate along a line to its peak, then lower it along a cosine to 0.

    Parameters
    ----------
    optimizer : Optimizer
        New: the learning rate of each group is its peak.
    warmup : int
        Steps from 0 to the peak.
    steps : int
        All steps, the warm-up included.
    done : int
        Steps of the schedule that an earlier process took.
    """
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return get_cosine_schedule_with_warmup(optimizer, warmup, steps, last_epoch=done - 1)
