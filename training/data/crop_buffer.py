"""The crops of one round, read once each into a memory-mapped file.

A round fits on the disk, not always in memory: the operating system keeps what is used. Every shard
is one request, and many are in flight; what is damaged stops the round and says its name.
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

from storage_schemas.crops import ArrayLayout
from storage_schemas.objects import for_each
from storage_schemas.store import StudyStore
from training.data.cohort import Study, VertebraCrop
from training.durable import unwritable
from training.ranks import agree, is_first, ranks, wait
from training.runs import VOXELS

MASKS = "masks"
"""The file of the masks, beside that of the voxels."""


@dataclass(frozen=True)
class CropBuffer:
    """The voxels of many crops, one after another.

    Parameters
    ----------
    vertebrae : tuple of VertebraCrop
    voxels : ndarray, shape (voxels,), int16, HU
        Memory-mapped, read-only.
    offsets : ndarray, shape (vertebrae + 1,), int64
        Where each crop begins.
    masks : ndarray, shape (voxels,), uint8, or None
        1 inside the vertebra, 0 outside or unknown; None where nobody asked for them.
    folder : Path or None
        Where what is made of the crops may be kept longer than they are.
    studies : tuple of Study
        Whose crops these are, with what is known of the patients.
    """

    vertebrae: tuple[VertebraCrop, ...]
    voxels: NDArray[np.int16]
    offsets: NDArray[np.int64]
    masks: NDArray[np.uint8] | None = None
    folder: Path | None = None
    studies: tuple[Study, ...] = ()

    def crop(self, index: int) -> NDArray[np.int16]:
        """One crop, shape (z, y, x), int16, HU: a view, nothing is copied."""
        return self._view(self._plain, index)

    def mask(self, index: int) -> NDArray[np.uint8]:
        """The mask of one crop, shape (z, y, x), uint8: a view, or zeros where none was read."""
        if self.masks is None:
            return np.zeros(self.vertebrae[index].shape, np.uint8)
        return self._view(self.masks, index)

    def _view(self, of: NDArray[Any], index: int) -> NDArray[Any]:
        start, stop = self._ends[index], self._ends[index + 1]
        return of[start:stop].reshape(self.vertebrae[index].shape)

    @cached_property
    def shapes(self) -> NDArray[np.int64]:
        """The shape of each crop, (vertebrae, 3), z, y, x."""
        return np.array([vertebra.shape for vertebra in self.vertebrae], np.int64).reshape(-1, 3)

    @cached_property
    def spacings_mm(self) -> NDArray[np.float32]:
        """The spacing of each crop, (vertebrae, 3), z, y, x."""
        spacings = [vertebra.spacing_mm for vertebra in self.vertebrae]
        return np.array(spacings, np.float32).reshape(-1, 3)

    @cached_property
    def _ends(self) -> list[int]:
        return cast(list[int], self.offsets.tolist())

    @cached_property
    def _plain(self) -> NDArray[np.int16]:
        # Views of a memmap cost several times those of an array, and there is one for each crop.
        return self.voxels.view(np.ndarray)


@contextmanager
def open_buffer(
    store: StudyStore,
    studies: Iterable[Study],
    folder: Path,
    advance: Callable[[], None] = lambda: None,
    *,
    masks: bool = False,
) -> Iterator[CropBuffer]:
    """Read the crops of some studies; the file under `folder` is gone when the block ends.

    Of several ranks the first one reads, and all map the same file.

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
    RunError
        ``run-unwritable`` where the disk has no room for them.
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
        path = Path(agree(str(path)))
        voxels = cast(NDArray[np.int16], _map(path, np.int16, offsets))
        inside = _map(path.with_name(MASKS), np.uint8, offsets) if masks else None
        yield CropBuffer(
            vertebrae, voxels, offsets, cast(NDArray[np.uint8] | None, inside), folder, studies
        )
        wait()  # the first one removes the file


def _map(path: Path, dtype: type, offsets: NDArray[np.int64]) -> NDArray[Any]:
    return np.memmap(path, dtype, "r", shape=(int(offsets[-1]),))


def _reserve(path: Path, size: int) -> None:
    """Make a file of so many bytes that the disk surely has: a hole in it would kill the process
    that writes there."""
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
            # A new file is all zeros: unknown.
            if masks and vertebra.masked:
                layout = ArrayLayout(vertebra.shape, "uint8")
                inside = store.read_slabs(vertebra.mask_path, layout)
                _write_at(files[1], inside, int(offsets[index]))

        for_each(read, range(len(vertebrae)), advance)
        if ranks() > 1:
            for file in files:
                os.fsync(file)  # another machine may map it


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _write_at(file: int, slabs: Iterable[NDArray[Any]], offset: int) -> None:
    """Write arrays one after another from a place in a file: each page of a new file that is
    written through a map would cost a fault."""
    for slab in slabs:
        rest = slab.data.cast("B")
        while rest:
            written = os.pwrite(file, rest, offset)
            rest, offset = rest[written:], offset + written
