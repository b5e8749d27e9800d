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
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from storage_schemas.crops import ArrayLayout
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
    masks : ndarray, shape (voxels,), uint8, or None
        1 inside the vertebra, 0 outside or unknown; None where nobody asked for them.
    """

    vertebrae: tuple[Vertebra, ...]
    voxels: NDArray[np.int16]
    offsets: NDArray[np.int64]
    masks: NDArray[np.uint8] | None = None

    def crop(self, index: int) -> NDArray[np.int16]:
        """One crop, shape (z, y, x), int16, HU: a view, nothing is copied."""
        return self._view(self.voxels, index)

    def mask(self, index: int) -> NDArray[np.uint8]:
        """The mask of one crop, shape (z, y, x), uint8: a view, or zeros where none was read."""
        if self.masks is None:
            return np.zeros(self.vertebrae[index].shape, np.uint8)
        return self._view(self.masks, index)

    def _view(self, of: NDArray[Any], index: int) -> NDArray[Any]:
        start, stop = self.offsets[index : index + 2]
        return of[start:stop].reshape(self.vertebrae[index].shape)


@contextmanager
def open_shards(
    store: StudyStore,
    studies: Iterable[Study],
    folder: Path,
    advance: Callable[[], None] = lambda: None,
    *,
    masks: bool = False,
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
    masks : bool
        Read the masks too, one byte a voxel.

    Raises
    ------
    StoreError
        ``array-missing`` or ``array-damaged``, naming the array.
    """
    vertebrae = tuple(vertebra for study in studies for vertebra in study.vertebrae)
    with TemporaryDirectory(prefix="voxels-", dir=folder) as place:
        yield _read_shards(store, vertebrae, Path(place), advance, masks)


def _read_shards(
    store: StudyStore,
    vertebrae: Sequence[Vertebra],
    folder: Path,
    advance: Callable[[], None],
    masks: bool,
) -> RoundShards:
    sizes = [int(np.prod(vertebra.shape)) for vertebra in vertebrae]
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    shape = (int(offsets[-1]),)
    voxels = np.memmap(folder / "voxels", np.int16, "w+", shape=shape)
    # A new file is all zeros: unknown.
    inside = np.memmap(folder / "masks", np.uint8, "w+", shape=shape) if masks else None

    def read(index: int) -> None:
        vertebra = vertebrae[index]
        place = slice(offsets[index], offsets[index + 1])
        voxels[place] = store.read_shard(vertebra.path, vertebra.layout).reshape(-1)
        if inside is not None and vertebra.masked:
            layout = ArrayLayout(vertebra.shape, "uint8")
            inside[place] = store.read_shard(vertebra.mask_path, layout).reshape(-1)

    with ThreadPoolExecutor(REQUESTS) as pool:
        try:
            for _ in pool.map(read, range(len(vertebrae))):
                advance()
        except BaseException:
            # Without this, the pool would first read all the other shards.
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return RoundShards(
        tuple(vertebrae),
        cast(NDArray[np.int16], _frozen(voxels)),
        offsets,
        None if inside is None else cast(NDArray[np.uint8], _frozen(inside)),
    )


def _frozen(file: "np.memmap[Any, Any]") -> NDArray[Any]:
    file.flush()
    return np.memmap(str(file.filename), file.dtype, "r", shape=file.shape)
