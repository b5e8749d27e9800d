"""Trains one step and keeps its gradient; run by the tests, alone or under torchrun."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from training.config import InputConfig, ModelConfig, TrainConfig
from training.models.slice_model import build_model
from training.optimization.trainer import RoundWork, fit
from training.ranks import is_first, joined_ranks

INPUTS = InputConfig(size=32)
EXAMPLES = 16
SMALL = 0.01
"""Keeps the gradient's norm below 1: clipping would hide a wrong scale."""


class Pictures(Dataset[Any]):
    def __getitems__(self, items: list[int]) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randn(EXAMPLES, 3, 32, 32, generator=generator)
        labels = (torch.rand(EXAMPLES, 1, generator=generator) < 0.3).float()
        return {"pixels": pixels[items], "labels": labels[items]}

    def __len__(self) -> int:
        return EXAMPLES


def loss(model: Any, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
    logits = model(pixel_values=batch["pixels"]).logits
    return SMALL * functional.binary_cross_entropy_with_logits(logits, batch["labels"])


def train(checkpoint: Path, batch_size: int, accumulation: int) -> float:
    """Two steps on all examples; the checkpoint after the first one holds its gradient."""
    model = build_model(ModelConfig(patch=8, width=32, depth=2, heads=2), INPUTS, seed=0)
    work = RoundWork(
        number=1,
        steps=2,
        rate=1e-4,
        layer_decay=1.0,
        ema=0.5,
        seed=0,
        log=lambda line: None,
        checkpoint=checkpoint,
    )
    config = TrainConfig(
        batch_size=batch_size, accumulation=accumulation, checkpoint_steps=1, warmup=0
    )
    order = torch.arange(EXAMPLES).repeat(2, 1).numpy()
    return fit(model, Pictures(), order, loss, config=config, work=work).loss


if __name__ == "__main__":
    with joined_ranks():
        found = train(Path(sys.argv[1]), *map(int, sys.argv[2:]))
        if is_first():
            Path(sys.argv[1]).with_suffix(".json").write_text(json.dumps(found))
