"""Atomic writes of files and folders to a local disk.

New content is written beside its target under a hidden name, flushed to the disk and renamed. A
process that is killed leaves the previous content in place, and the next write removes its
leftovers. A full or failing disk raises `RunError`. For the contents of a RUN see `training.runs`,
for objects of a store `storage_schemas.objects`.
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
    """Turn an operating-system error inside the block into a `RunError`.

    Parameters
    ----------
    path : Path
        File or folder that the block writes.

    Raises
    ------
    RunError
        ``run-unwritable``, with the system's reason and `path` as the key.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = f"cannot be written: {reason_of(error)}"
        raise RunError("run-unwritable", reason, key=str(path)) from None


@contextmanager
def write_file(path: Path) -> Iterator[Path]:
    """Replace a file atomically by what the block writes.

    Parameters
    ----------
    path : Path
        Target file; its folder must exist.

    Yields
    ------
    Path
        Temporary path that the block writes to.

    Raises
    ------
    RunError
        ``run-unwritable``. On any exception in the block the previous file is kept and the
        temporary file is removed.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with unwritable(path):
            yield partial
            sync(partial)
            partial.replace(path)
            sync(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)  # frees the space that other files need
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a file atomically by `data`; see `write_file`."""
    with write_file(path) as partial:
        partial.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Replace a file atomically by `text` in UTF-8; see `write_file`."""
    write_bytes(path, text.encode())


@contextmanager
def write_folder(path: Path) -> Iterator[Path]:
    """Replace a folder atomically by the one that the block fills.

    Parameters
    ----------
    path : Path
        Target folder; its parent is created if it is missing.

    Yields
    ------
    Path
        Temporary empty folder that the block fills.

    Raises
    ------
    RunError
        ``run-unwritable``. On any exception in the block the previous folder is kept and the
        temporary folder is removed.
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
                path.rename(old)  # a folder cannot be renamed over another one
            partial.rename(path)
            sync(path.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)  # frees the space that other files need
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
