"""The crops of one round, read once each into a memory-mapped file.

A round fits on the disk, not always in memory: the operating system keeps what is used. Every shard
is one request, and many are in flight; what is damaged stops the round and says its name.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import numpy as np
from numpy.typing import NDArray

from storage_schemas.objects import REQUESTS
from storage_schemas.store import StudyStore
from training.cohort import Study, Vertebra


@dataclass(frozen=True)
class RoundShards:
    """The voxels of many crops, one after another.

    Parameters
    ----------
    vertebrae : tuple of Vertebra
    voxels : ndarray, shape (voxels,), int16, HU
        Memory-mapped, read-only.
    offsets : ndarray, shape (vertebrae + 1,), int64
        Where each crop begins.
    """

    vertebrae: tuple[Vertebra, ...]
    voxels: NDArray[np.int16]
    offsets: NDArray[np.int64]

    def crop(self, index: int) -> NDArray[np.int16]:
        """One crop, shape (z, y, x), int16, HU: a view, nothing is copied."""
        start, stop = self.offsets[index : index + 2]
        return self.voxels[start:stop].reshape(self.vertebrae[index].shape)


@contextmanager
def open_shards(
    store: StudyStore,
    studies: Iterable[Study],
    folder: Path,
    advance: Callable[[], None] = lambda: None,
) -> Iterator[RoundShards]:
    """Read the crops of some studies; the file under `folder` is gone when the block ends.

    Parameters
    ----------
    store : StudyStore
    studies : iterable of Study
    folder : Path
        On a disk with room for the voxels: two bytes each.
    advance : callable
        Called after each crop.

    Raises
    ------
    StoreError
        ``array-missing`` or ``array-damaged``, naming the array.
    """
    vertebrae = tuple(vertebra for study in studies for vertebra in study.vertebrae)
    with TemporaryDirectory(prefix="voxels-", dir=folder) as place:
        yield _read_shards(store, vertebrae, Path(place) / "voxels", advance)


def _read_shards(
    store: StudyStore, vertebrae: Sequence[Vertebra], path: Path, advance: Callable[[], None]
) -> RoundShards:
    sizes = [int(np.prod(vertebra.shape)) for vertebra in vertebrae]
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    voxels = np.memmap(path, np.int16, "w+", shape=(int(offsets[-1]),))

    def read(index: int) -> None:
        vertebra = vertebrae[index]
        crop = store.read_shard(vertebra.path, vertebra.layout)
        voxels[offsets[index] : offsets[index + 1]] = crop.reshape(-1)

    with ThreadPoolExecutor(REQUESTS) as pool:
        try:
            for _ in pool.map(read, range(len(vertebrae))):
                advance()
        except BaseException:
            # Without this, the pool would first read all the other shards.
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    voxels.flush()
    frozen = cast(NDArray[np.int16], np.memmap(path, np.int16, "r", shape=voxels.shape))
    return RoundShards(tuple(vertebrae), frozen, offsets)
