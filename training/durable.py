"""Files and folders on a local disk that appear whole or not at all, and one error for a full disk.

The new content is written beside its place under a hidden name, flushed to the disk, and renamed. A
process that is killed leaves what was there before, and the next write removes what it left. Not
here: what a RUN holds (`training.runs`), and objects of a store (`storage_schemas.objects`).
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from storage_schemas.errors import RunError, reason_of


@contextmanager
def unwritable(path: Path) -> Iterator[None]:
    """Turn the error of a disk that is full or fails into a RunError.

    Parameters
    ----------
    path : Path
        What is written within the block.

    Raises
    ------
    RunError
        ``run-unwritable``, with the system's reason and the path as its key.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = f"cannot be written: {reason_of(error)}"
        raise RunError("run-unwritable", reason, key=str(path)) from None


@contextmanager
def write_file(path: Path) -> Iterator[Path]:
    """Replace a file by what the block writes, once the block is done.

    Parameters
    ----------
    path : Path
        The file; its folder is there.

    Yields
    ------
    Path
        Where the block writes the file.

    Raises
    ------
    RunError
        ``run-unwritable``. Here, and where the block raises anything, what was there before stays,
        and no part of a new file is left.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with unwritable(path):
            yield partial
            sync(partial)
            partial.replace(path)
            sync(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)  # it takes room that is needed
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a file by these bytes; see `write_file`."""
    with write_file(path) as partial:
        partial.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Replace a file by this text in UTF-8; see `write_file`."""
    write_bytes(path, text.encode())


@contextmanager
def write_folder(path: Path) -> Iterator[Path]:
    """Replace a folder by the one that the block fills, once the block is done.

    Parameters
    ----------
    path : Path
        The folder; the one above it is made where it is missing.

    Yields
    ------
    Path
        An empty folder, which the block fills.

    Raises
    ------
    RunError
        ``run-unwritable``. Here, and where the block raises anything, what was there before stays,
        and no part of a new folder is left.
    """
    partial, old = (path.with_name(f".{path.name}.{part}") for part in ("partial", "old"))
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with unwritable(path):
            partial.mkdir(parents=True)
            yield partial
            for entry in (*partial.rglob("*"), partial):
                sync(entry)
            shutil.rmtree(old, ignore_errors=True)
            if path.exists():
                path.rename(old)  # no system renames a folder over another one
            partial.rename(path)
            sync(path.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)  # it takes room that is needed
        if old.exists() and not path.exists():
            old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
