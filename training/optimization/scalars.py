"""TensorBoard scalars, in addition to the journals."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from training.durable import unwritable

Scalars = Callable[[str, float, int], None]
"""Function of a name, a value and the optimizer step, counted over all rounds."""


@contextmanager
def write_scalars(folder: Path) -> Iterator[Scalars]:
    """Write scalars to `folder`, which is created with the first one."""
    from torch.utils.tensorboard import SummaryWriter

    writers: list[Any] = []

    def write(name: str, value: float, step: int) -> None:
        with unwritable(folder):
            if not writers:
                writers.append(SummaryWriter(str(folder)))
            writers[0].add_scalar(name, value, step)

    try:
        yield write
    finally:
        for writer in writers:
            with unwritable(folder):
                writer.close()
