"""The bare loop that `full_scale` is compared with: it only fetches, decodes and compresses.

It reads the same bytes from the same bucket (see `big_bucket`) and cuts the same crops, in worker
processes that persist between turns.
"""

import multiprocessing
import time
import zlib
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import big_bucket
import imagecodecs
import numpy as np
from numcodecs import Blosc
from numpy.typing import NDArray

from storage_schemas.objects import ObjectFolder

NIFTI_HEADER = 352
"""Bytes of a NIfTI-1 file before the voxels."""
BARE_STUDIES = 12
"""Number of studies in a turn."""


def bare_study(number: int, bucket: str, slices: int, boxes: list[list[slice]]) -> int:
    """Fetch, decode and compress one study and its mask; return the number of bytes to store."""
    folder = ObjectFolder(bucket)
    study = big_bucket.presented_uid(number)
    keys = [f"{big_bucket.SOURCE}/{study}/{z}.dcm" for z in range(slices)]
    mask = zlib.decompress(folder.get(f"{big_bucket.MASKS}/{study}.nii.gz"), wbits=31)
    volume = np.stack([_decode(data) for _, data in folder.get_all(keys)])
    # A phantom's mask has the grid of its images, with the rows reversed.
    labels = np.frombuffer(mask, np.uint8, volume.size, NIFTI_HEADER).reshape(volume.shape)
    codec = Blosc(cname="zstd", clevel=3, shuffle=Blosc.SHUFFLE)
    return sum(
        len(codec.encode(np.ascontiguousarray(array[tuple(box)])))
        for box in boxes
        for array in (volume, labels[:, ::-1])
    )


def _decode(data: bytes | OSError) -> NDArray[np.int16]:
    if isinstance(data, OSError):
        raise data
    image: NDArray[np.int16] = imagecodecs.jpeg_decode(data[data.index(b"\xff\xd8\xff") :])
    return image


class BareLoop:
    """Run the bare loop over `BARE_STUDIES` studies in worker processes, turn by turn.

    Parameters
    ----------
    bucket : str
        URL of the bucket.
    counts : list of int
        Number of slices of each study.
    boxes : list
        Crop boxes of each real study.
    workers : int
        Number of worker processes.

    Attributes
    ----------
    turns : list of float
        Wall seconds per study of each turn.
    bytes_out : int
        Bytes to store per study.
    """

    def __init__(
        self, bucket: str, counts: list[int], boxes: list[list[list[slice]]], workers: int
    ) -> None:
        chosen = [n % len(counts) for n in range(BARE_STUDIES)]
        self._jobs = [(n, bucket, counts[n], boxes[n % len(boxes)]) for n in chosen]
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(workers, context, initializer=_count_nothing)
        self._work(self._jobs[:workers])  # warm up imports and caches
        self.turns: list[float] = []
        self.bytes_out = 0

    def take_turn(self) -> None:
        """Run one turn and record the wall seconds per study."""
        start = time.perf_counter()
        self.bytes_out = self._work(self._jobs) // BARE_STUDIES
        self.turns.append((time.perf_counter() - start) / BARE_STUDIES)

    def close(self) -> None:
        """Stop the worker processes."""
        self._pool.shutdown()

    def _work(self, jobs: list[tuple[Any, ...]]) -> int:
        return sum(self._pool.map(bare_study, *zip(*jobs, strict=True)))


def _count_nothing() -> None:
    """Disable request counting, which covers the pipeline's run only."""
    big_bucket.count = lambda kind: None
