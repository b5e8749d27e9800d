"""A loss of power at any moment of a commit: never a record without its arrays, nor other voxels.

The method is that of ALICE (Pillai et al., OSDI 2014): the operations of a commit are recorded, and
after each of them the disk is made as a crash could leave it. What was synced is there; of the
rest, contents and names may each be there or not.
"""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from pipeline.cli import main
from storage_schemas import local_files
from storage_schemas.store import StudyStore
from tests.studies import write_cohort

STUDY = "1.2.1"
SAMPLES = 4
"""Random crash states after each operation, beside the two extremes."""


@dataclass(frozen=True)
class Operation:
    """One change of the disk: a name that appears (with contents) or goes, or a sync."""

    what: str  # "file", "gone", "sync file" or "sync folder"
    path: str
    data: bytes = b""


@dataclass
class Recorder:
    """Sees the operations below a folder while it is switched on."""

    root: str = ""
    operations: list[Operation] = field(default_factory=list)
    lock: Any = field(default_factory=threading.Lock)

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.root or event not in ("os.rename", "os.remove", "os.rmdir"):
            return
        path = Path(os.fspath(arguments[1 if event == "os.rename" else 0]))
        if isinstance(arguments[-1], int) and not path.is_absolute() and arguments[-1] >= 0:
            path = Path(f"/proc/self/fd/{arguments[-1]}").readlink() / path
        if not str(path).startswith(self.root):
            return
        if event == "os.rename":
            data = Path(os.fspath(arguments[0])).read_bytes()
            self.add(Operation("file", str(path), data))
        elif event == "os.remove" and not path.name.endswith(".partial"):
            self.add(Operation("gone", str(path)))

    def sync(self, handle: int) -> None:
        path = Path(f"/proc/self/fd/{handle}").readlink()
        self.add(Operation("sync folder" if path.is_dir() else "sync file", str(path)))

    def add(self, operation: Operation) -> None:
        with self.lock:
            self.operations.append(operation)


recorder = Recorder()
sys.addaudithook(recorder.hear)  # a hook cannot be removed; it sees nothing without a root


@contextmanager
def recorded(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Operation]]:
    real = os.fsync

    def fsync(handle: int) -> None:
        recorder.sync(handle)
        real(handle)

    monkeypatch.setattr(local_files.os, "fsync", fsync)
    recorder.operations, recorder.root = [], str(root)
    try:
        yield recorder.operations
    finally:
        recorder.root = ""


def crash(before: dict[str, bytes], operations: list[Operation], keep: Any) -> dict[str, bytes]:
    """The files after a crash; `keep` decides what was not synced, ``names`` and ``contents``."""
    files = dict(before)
    synced_contents = {o.path for o in operations if o.what == "sync file"}
    for at, operation in enumerate(operations):
        if operation.what not in ("file", "gone"):
            continue
        folder = str(Path(operation.path).parent)
        durable = any(
            later.what == "sync folder" and later.path == folder for later in operations[at + 1 :]
        )
        if not (durable or keep("names")):
            continue
        if operation.what == "gone":
            files.pop(operation.path, None)
        else:
            whole = operation.path in synced_contents or keep("contents")
            files[operation.path] = operation.data if whole else b""
    return files


def lay(files: dict[str, bytes], root: Path) -> StudyStore:
    """The crashed disk, in memory."""
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    store = StudyStore("memory://crashed")
    for path, data in files.items():
        memory.pipe_file(f"/crashed/{Path(path).relative_to(root)}", data)
    return store


def files_below(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def is_honest(store: StudyStore) -> bool:
    """Whether each readable record has every array that it vouches for."""
    for head in store.heads():
        if isinstance(head, Exception):
            continue  # named as damaged, and done again
        if store.check(store.record(head.study)):
            return False
    return True


@pytest.mark.parametrize("again", [False, True], ids=["first commit", "commit over another"])
def test_no_moment_of_a_commit_leaves_a_record_without_its_arrays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    source, masks = write_cohort(tmp_path, studies=1)
    root = tmp_path / "store"
    command = ["run", str(source), str(root), "--masks", str(masks), "--serial"]
    if again:
        assert main([*command, "--margin", "4"]) == 0
    else:
        StudyStore.create(str(root))
    before = files_below(root)
    with recorded(root, monkeypatch) as operations:
        assert main(command) == 0
    end = next(
        at
        for at in range(len(operations), 0, -1)
        if operations[at - 1].path.endswith(f"{STUDY}.json")
    )
    assert end > 20
    random = np.random.default_rng(0)
    keeps = [lambda _: True, lambda _: False, lambda part: part == "names"]
    keeps += [lambda _: bool(random.integers(2))] * SAMPLES
    seen = set()
    for moment in range(1, end + 1):
        for keep in keeps:
            files = crash(before, operations[:moment], keep)
            state = hash(frozenset(files.items()))
            if state in seen or not any(path.endswith(f"{STUDY}.json") for path in files):
                continue
            seen.add(state)
            store = lay(files, root)
            assert is_honest(store), f"after {operations[moment - 1].what} {moment} of {end}"


def test_a_finished_commit_outlasts_a_loss_of_power(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, masks = write_cohort(tmp_path, studies=1)
    root = tmp_path / "store"
    StudyStore.create(str(root))
    before = files_below(root)
    with recorded(root, monkeypatch) as operations:
        assert main(["run", str(source), str(root), "--masks", str(masks), "--serial"]) == 0
    store = lay(crash(before, operations, lambda _: False), root)
    assert store.studies() == [STUDY]
    assert store.check(store.record(STUDY)) == []
