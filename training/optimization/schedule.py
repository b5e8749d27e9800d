"""The learning-rate schedule."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_cosine_schedule_with_warmup


def warmup_cosine(optimizer: Optimizer, warmup: int, steps: int, done: int = 0) -> LambdaLR:
    """Raise the learning rates linearly to their peak, then decrease them along a cosine to 0.

    Parameters
    ----------
    optimizer : Optimizer
        New optimizer; the learning rate of each parameter group is its peak.
    warmup : int
        Number of steps from 0 to the peak.
    steps : int
        Total number of steps, including the warm-up.
    done : int
        Number of steps that were finished before a resume.
    """
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return get_cosine_schedule_with_warmup(optimizer, warmup, steps, last_epoch=done - 1)
