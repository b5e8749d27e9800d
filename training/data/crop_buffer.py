"""The crops of one round, read once into a memory-mapped file.

A round fits on the disk but not always in memory; the operating system caches the pages in use.
Each shard is read with one request, many of them in parallel. A damaged array stops the round with
an error that names it.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from storage_schemas.arrays import ArrayLayout
from storage_schemas.objects import for_each
from storage_schemas.store import StudyStore
from storage_schemas.targets import Targets
from training.data.cohort import Study, VertebraCrop
from training.durable import unwritable
from training.ranks import broadcast_text, is_first, ranks, wait
from training.runs import VOXELS

MASKS = "masks"
"""Name of the mask file beside the voxel file."""


@dataclass(frozen=True)
class CropBuffer:
    """The voxels of many crops in one array.

    Parameters
    ----------
    vertebrae : tuple of VertebraCrop
        The crops, in the order of `voxels`.
    voxels : ndarray, shape (voxels,), int16, HU
        Voxels of all crops, concatenated; memory-mapped and read-only.
    offsets : ndarray, shape (vertebrae + 1,), int64
        Start of each crop in `voxels`, and the total length.
    targets : Targets
        Targets of the run, which give levels and labels their order in arrays.
    masks : ndarray, shape (voxels,), uint8, or None
        1 inside the vertebra, 0 outside or where the mask is unknown; None where masks were not
        read.
    folder : Path or None
        Run folder, where data derived from the crops can be cached across rounds.
    studies : tuple of Study
        Studies that the crops belong to.
    """

    vertebrae: tuple[VertebraCrop, ...]
    voxels: NDArray[np.int16]
    offsets: NDArray[np.int64]
    targets: Targets
    masks: NDArray[np.uint8] | None = None
    folder: Path | None = None
    studies: tuple[Study, ...] = ()

    def crop(self, index: int) -> NDArray[np.int16]:
        """Return one crop, shape (z, y, x), int16, HU, as a view."""
        return self._view(self._plain, index)

    def mask(self, index: int) -> NDArray[np.uint8]:
        """Return the mask of one crop, shape (z, y, x), uint8; zeros where masks were not read."""
        if self.masks is None:
            return np.zeros(self.vertebrae[index].shape, np.uint8)
        return self._view(self.masks, index)

    def _view(self, of: NDArray[Any], index: int) -> NDArray[Any]:
        start, stop = self._ends[index], self._ends[index + 1]
        return of[start:stop].reshape(self.vertebrae[index].shape)

    @cached_property
    def shapes(self) -> NDArray[np.int64]:
        """Shape (z, y, x) of each crop, shape (vertebrae, 3), int64."""
        return np.array([vertebra.shape for vertebra in self.vertebrae], np.int64).reshape(-1, 3)

    @cached_property
    def spacings_mm(self) -> NDArray[np.float32]:
        """Voxel spacing (z, y, x) of each crop in mm, shape (vertebrae, 3), float32."""
        spacings = [vertebra.spacing_mm for vertebra in self.vertebrae]
        return np.array(spacings, np.float32).reshape(-1, 3)

    @cached_property
    def _ends(self) -> list[int]:
        return cast(list[int], self.offsets.tolist())

    @cached_property
    def _plain(self) -> NDArray[np.int16]:
        # Slicing a memmap is several times slower than slicing an array.
        return self.voxels.view(np.ndarray)


@contextmanager
def open_buffer(
    store: StudyStore,
    studies: Iterable[Study],
    targets: Targets,
    folder: Path,
    advance: Callable[[], None] = lambda: None,
    *,
    masks: bool = False,
) -> Iterator[CropBuffer]:
    """Read the crops of some studies into a temporary memory-mapped file.

    With several ranks, rank 0 reads and all ranks map the same file. The file is removed at the end
    of the block.

    Parameters
    ----------
    store : StudyStore
        Store to read from.
    studies : iterable of Study
        Studies whose crops are read.
    targets : Targets
        Targets of the run.
    folder : Path
        Folder for the temporary file; it needs two bytes of free space for each voxel.
    advance : callable
        Called without arguments after each crop.
    masks : bool
        Whether to read the masks too, one more byte for each voxel.

    Raises
    ------
    StoreError
        ``array-missing`` or ``array-damaged``, naming the array.
    RunError
        ``run-unwritable`` if the disk is too small.
    """
    studies = tuple(studies)
    vertebrae = tuple(vertebra for study in studies for vertebra in study.vertebrae)
    sizes = [int(np.prod(vertebra.shape)) for vertebra in vertebrae]
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    with ExitStack() as stack:
        path = Path()
        if is_first():
            with unwritable(folder):
                place = stack.enter_context(
                    TemporaryDirectory(prefix=VOXELS, dir=folder, ignore_cleanup_errors=True)
                )
                path = Path(place) / "voxels"
                _reserve(path, 2 * int(offsets[-1]))
                if masks:
                    _reserve(path.with_name(MASKS), int(offsets[-1]))
            _read_crops(store, vertebrae, path, offsets, advance, masks)
        path = Path(broadcast_text(str(path)))
        voxels = cast(NDArray[np.int16], _map(path, np.int16, offsets))
        inside = _map(path.with_name(MASKS), np.uint8, offsets) if masks else None
        inside = cast(NDArray[np.uint8] | None, inside)
        yield CropBuffer(vertebrae, voxels, offsets, targets, inside, folder, studies)
        wait()  # rank 0 removes the file


def _map(path: Path, dtype: type, offsets: NDArray[np.int64]) -> NDArray[Any]:
    return np.memmap(path, dtype, "r", shape=(int(offsets[-1]),))


def _reserve(path: Path, size: int) -> None:
    """Allocate a file of `size` bytes on the disk.

    Writing to a hole of a sparse, memory-mapped file on a full disk would kill the process.
    """
    with path.open("wb") as stream:
        if hasattr(os, "posix_fallocate") and size:
            os.posix_fallocate(stream.fileno(), 0, size)
        stream.truncate(max(size, 1))  # an empty file cannot be mapped


def _read_crops(
    store: StudyStore,
    vertebrae: Sequence[VertebraCrop],
    path: Path,
    offsets: NDArray[np.int64],
    advance: Callable[[], None],
    masks: bool,
) -> None:
    with ExitStack() as stack:
        files = [stack.enter_context(_opened(path))]
        if masks:
            files.append(stack.enter_context(_opened(path.with_name(MASKS))))

        def read(index: int) -> None:
            vertebra = vertebrae[index]
            voxels = store.read_slabs(vertebra.path, vertebra.layout)
            _write_at(files[0], voxels, 2 * int(offsets[index]))
            # A new file holds zeros, which mean unknown.
            if masks and vertebra.masked:
                layout = ArrayLayout(vertebra.shape, "uint8")
                inside = store.read_slabs(vertebra.mask_path, layout)
                _write_at(files[1], inside, int(offsets[index]))

        for_each(read, range(len(vertebrae)), advance)
        if ranks() > 1:
            for file in files:
                os.fsync(file)  # another machine may map the file


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _write_at(file: int, slabs: Iterable[NDArray[Any]], offset: int) -> None:
    """Write arrays one after another, from `offset` on, without a memory map.

    Each first write to a page of a mapped file would cause a page fault.
    """
    for slab in slabs:
        rest = slab.data.cast("B")
        while rest:
            written = os.pwrite(file, rest, offset)
            rest, offset = rest[written:], offset + written
