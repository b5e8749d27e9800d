"""Where models run: the first GPU, or the CPU."""

from collections.abc import Mapping

import torch
from torch import Tensor


def device() -> torch.device:
    """Where models run: the first GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def to_device(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A batch where models run."""
    return {name: part.to(device()) for name, part in batch.items()}
