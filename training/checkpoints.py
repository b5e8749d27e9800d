"""A round in the middle: one safetensors file from which it goes on to the very same weights.

It holds the model, the moments of AdamW, the moving average, and in its header where the round is.
Draws need no state: each batch makes its own from the seed and its number. Never a pickle.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from storage_schemas.errors import RunError
from training.runs import sync, unwritable


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
    partial = path.with_name(f"{path.name}.partial")
    header = {name: repr(value) for name, value in asdict(progress).items()}
    try:
        with unwritable(path):
            save_file({n: t.cpu().contiguous() for n, t in tensors.items()}, partial, header)
            sync(partial)
            partial.replace(path)
    except RunError:
        partial.unlink(missing_ok=True)  # it takes room that is needed
        raise


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
            # Views of the file need not be aligned, and sums then come in another order.
            names = stream.keys()
            return progress, {name: stream.get_tensor(name).clone() for name in names}
    except (SafetensorError, OSError, KeyError, ValueError):
        return None
