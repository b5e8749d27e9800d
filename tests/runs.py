"""Settings of a run that takes seconds and executes every line, and functions to read it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

SETTINGS = [
    *("--preset", "demo", "--size", "32", "--patch", "8", "--width", "16"),
    *("--rounds", "3", "--slices-per-round", "60", "--epochs", "1.5", "--batch-size", "16"),
    *("--guard", "0.2", "--calibration", "0.2", "--test", "0.2", "--checkpoint-steps", "2"),
]


def lines_of(run: Path, name: str = "rounds.jsonl") -> list[dict[str, Any]]:
    """The lines of a journal."""
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def weights_of(folder: Path) -> dict[str, Tensor]:
    """The weights of a saved model."""
    return load_file(folder / "model.safetensors")


def same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    """Whether all expected tensors are found, bit for bit."""
    return all(torch.equal(found[name], tensor) for name, tensor in expected.items())
