"""The device that models run on."""

from collections.abc import Mapping

import torch
from torch import Tensor


def device() -> torch.device:
    """Return the first GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def to_device(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Move every tensor of a batch to `device`."""
    return {name: part.to(device()) for name, part in batch.items()}
