"""Objects as files of a local disk: written atomically and durably, removed by their literal names.

A store on a disk keeps its order through a loss of power: what `sync_files` has returned for is on
the disk, and a rename that `replace_file` made is on the disk once its folder was synced (POSIX
``fsync`` of the file, then of the folder that names it; Pillai et al., "All File Systems Are Not
Created Equal", OSDI 2014).
"""

import errno
import glob
import os
import shutil
import stat
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_TRIES = 20
"""Times that a write is tried where other processes interfere."""
_SYNCS = 8
"""Files that are synced at once, so that a journalling file system can do them in one commit."""


def check_regular(path: str) -> None:
    """Refuse pipes, sockets and devices: reading one may never end.

    Raises
    ------
    OSError
        EINVAL where the path is neither a regular file nor a folder.
    """
    mode = os.stat(path).st_mode  # noqa: PTH116 - a Path for each slice costs more than the call
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.EINVAL, "no regular file", path)


def replace_file(path: str, data: bytes) -> None:
    """Write a file atomically, in place of any other.

    Not durable by itself: see `sync_files`. Where another process writes the same file, or removes
    its folder, at the same moment, the write is tried again.
    """
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}-{threading.get_ident()}.partial")
    for attempt in range(_TRIES):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(data)
            partial.replace(target)
            break
        except FileNotFoundError:
            if attempt + 1 == _TRIES:
                raise
        finally:
            # Those of writers that were killed as well; one that still writes tries again.
            for left in target.parent.glob(f".{glob.escape(target.name)}.*.partial"):
                left.unlink(missing_ok=True)


def sync_files(paths: Iterable[str], root: str) -> None:
    """Put files, and the folders that name them, on the disk.

    Parameters
    ----------
    paths : iterable of str
        Files that were written; one that is gone is skipped.
    root : str
        Folder below which they lie; the folders between it and each file are synced too.
    """
    files = [Path(path) for path in paths]
    top = Path(root)
    folders: set[Path] = set()
    for path in files:
        for folder in path.parents:
            folders.add(folder)
            if folder == top:
                break
    with ThreadPoolExecutor(_SYNCS) as pool:
        list(pool.map(_sync, files))
        list(pool.map(_sync, sorted(folders, reverse=True)))


def remove_tree(path: str) -> None:
    """Remove a file, or a folder with all below it; a link is removed, never followed.

    What another process removed meanwhile is fine.
    """
    target = Path(path)
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target, onerror=_fail_unless_gone)
    else:
        target.unlink(missing_ok=True)


def _fail_unless_gone(_: object, path: str, error: tuple[object, BaseException, object]) -> None:
    if not isinstance(error[1], FileNotFoundError):
        raise error[1]


def _sync(path: Path) -> None:
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
