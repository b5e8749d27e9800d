"""Several processes on one run, as ``torchrun`` starts them; one alone needs nothing of this.

All ranks walk through the same program: they train together, share the scoring, and decide alike.
Only the first one writes, and RUN lies where all of them can read it.
"""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed

_PATIENCE = timedelta(hours=12)
"""How long a rank waits for the others: the first one may be reading a large round."""


@contextmanager
def joined_ranks() -> Iterator[None]:
    """Meet the other ranks, where ``torchrun`` started several, and part from them in the end."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    distributed.init_process_group(backend, timeout=_PATIENCE)
    try:
        yield
        wait()
    finally:
        # Whatever still holds the group, as a wrapped model in a cycle does, would keep its threads
        # beyond its end, and these abort a process that is otherwise done.
        gc.collect()
        distributed.destroy_process_group()


def ranks() -> int:
    """How many there are."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Which one this is, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def is_first() -> bool:
    """Whether this is the one that writes."""
    return rank() == 0


def wait() -> None:
    """Go on when all ranks are here."""
    if ranks() > 1:
        # A sum on the CPU: a barrier of NCCL would give up after minutes.
        distributed.all_reduce(torch.zeros(1))


def gather_rows(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Put together a table of which every rank filled some rows and left the others 0."""
    if ranks() == 1:
        return rows
    table = torch.from_numpy(rows)
    distributed.all_reduce(table)
    return table.numpy()


def agree(text: str) -> str:
    """What the first rank says, of at most 4,096 bytes."""
    if ranks() == 1:
        return text
    told = torch.zeros(4096, dtype=torch.uint8)
    if is_first():
        data = text.encode()
        told[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    distributed.broadcast(told, src=0)
    return bytes(told.tolist()).rstrip(b"\0").decode()
