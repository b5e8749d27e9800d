"""What training goes on from to the very same weights: safetensors files, and never a pickle.

The checkpoint of a round in the middle holds the model, the moments of AdamW, the moving average,
and in its header where the round is. Draws need no state: each batch makes its own from the seed
and its number. The last iterate of a finished round holds the model's weights alone.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from storage_schemas.errors import UsageError
from training.durable import write_file


@dataclass(frozen=True)
class Progress:
    """Where a round is.

    Parameters
    ----------
    number, steps : int
        The round, and all its steps.
    step : int
        Those that are done.
    loss : float
        Sum of their losses.
    """

    number: int
    steps: int
    step: int
    loss: float


def write_checkpoint(path: Path, progress: Progress, tensors: Mapping[str, Tensor]) -> None:
    """Replace the checkpoint, whole or not at all.

    Raises
    ------
    RunError
        ``run-unwritable`` where the disk is full or fails.
    """
    header = {name: repr(value) for name, value in asdict(progress).items()}
    _write(path, tensors, header)


def read_checkpoint(path: Path) -> tuple[Progress, dict[str, Tensor]] | None:
    """Read the checkpoint; None where there is none, or none that can be read."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as stream:
            header = stream.metadata() or {}
            progress = Progress(
                int(header["number"]),
                int(header["steps"]),
                int(header["step"]),
                float(header["loss"]),
            )
            return progress, _tensors(stream)
    except (SafetensorError, OSError, KeyError, ValueError):
        return None


def write_last_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Keep the weights that a round trained, whole or not at all.

    Raises
    ------
    RunError
        ``run-unwritable`` where the disk is full or fails.
    """
    _write(path, weights, {})


def read_last_weights(path: Path) -> dict[str, Tensor]:
    """Read them back, to the bit.

    Raises
    ------
    UsageError
        ``model-invalid`` where they are missing or damaged.
    """
    try:
        with safe_open(path, "pt") as stream:
            return _tensors(stream)
    except (SafetensorError, OSError) as error:
        reason = f"the next round goes on from these weights, and they cannot be read: {error}"
        raise UsageError("model-invalid", reason, key=str(path)) from None


def _write(path: Path, tensors: Mapping[str, Tensor], header: dict[str, str]) -> None:
    with write_file(path) as partial:
        save_file({n: t.cpu().contiguous() for n, t in tensors.items()}, partial, header)


def _tensors(stream: safe_open) -> dict[str, Tensor]:
    # Views of the file need not be aligned, and sums then come in another order.
    return {name: stream.get_tensor(name).clone() for name in stream.keys()}  # noqa: SIM118
