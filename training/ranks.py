"""Data-parallel training: one process for each rank, as started by ``torchrun``.

All ranks execute the same program: they share the batches of a step and the scoring, and take the
same decisions. Only rank 0 writes, so RUN must lie where every rank can read it. A single process
needs none of this.
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

_TIMEOUT = timedelta(hours=12)
"""How long a rank waits for the others while rank 0 reads a large round."""


@contextmanager
def joined_ranks() -> Iterator[None]:
    """Initialize `torch.distributed` where ``torchrun`` started several ranks."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    distributed.init_process_group(backend, timeout=_TIMEOUT)
    try:
        yield
        wait()
    finally:
        # Objects that still hold the group, such as a wrapped model in a reference cycle, keep its
        # threads alive, and these abort the process at exit.
        gc.collect()
        distributed.destroy_process_group()


def ranks() -> int:
    """Return the number of ranks."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Return the index of this rank, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def is_first() -> bool:
    """Return whether this is rank 0, the only one that writes."""
    return rank() == 0


def wait() -> None:
    """Block until all ranks have arrived."""
    if ranks() > 1:
        # A reduction on the CPU, because an NCCL barrier times out after minutes.
        distributed.all_reduce(torch.zeros(1))


def gather_rows(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum a table over the ranks; each rank fills its own rows and leaves the others 0."""
    if ranks() == 1:
        return rows
    table = torch.from_numpy(rows)
    distributed.all_reduce(table)
    return table.numpy()


def broadcast_text(text: str) -> str:
    """Return the text of rank 0, at most 4,096 bytes, on every rank."""
    if ranks() == 1:
        return text
    buffer = torch.zeros(4096, dtype=torch.uint8)
    if is_first():
        data = text.encode()
        buffer[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    distributed.broadcast(buffer, src=0)
    return bytes(buffer.tolist()).rstrip(b"\0").decode()
