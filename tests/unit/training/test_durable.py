import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storage_schemas.errors import RunError
from training import durable
from training.durable import write_bytes, write_file, write_folder, write_text


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def stopped(*_: Any) -> None:
    raise KeyboardInterrupt


def fill(folder: Path, text: str) -> None:
    with write_folder(folder) as partial:
        (partial / "a.txt").write_text(text)
        (partial / "below").mkdir()
        (partial / "below" / "b.txt").write_text(text)


def texts(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_text() for path in files}


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "one")
    write_bytes(tmp_path / "a.txt", b"two")
    assert texts(tmp_path) == {"a.txt": "two"}


def test_a_folder_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "above" / "made"
    fill(folder, "one")
    (folder / "old.txt").touch()
    fill(folder, "two")
    assert texts(tmp_path) == {"above/made/a.txt": "two", "above/made/below/b.txt": "two"}
    assert [path.name for path in folder.parent.iterdir()] == ["made"]


@pytest.mark.parametrize("name", ["sync", "rename"])
@pytest.mark.parametrize("write", [write_text, fill])
def test_a_full_disk_is_one_error_and_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[..., None], name: str
) -> None:
    write(tmp_path / "made", "one")
    before = texts(tmp_path)
    if name == "sync":
        monkeypatch.setattr(durable, "sync", full)
    else:
        monkeypatch.setattr(Path, "replace", full)
        rename = Path.rename
        moves = iter([rename, full, rename])  # the old one away, the new one in, the old one back
        monkeypatch.setattr(Path, "rename", lambda path, to: next(moves)(path, to))
    with pytest.raises(RunError, match="No space left on device") as caught:
        write(tmp_path / "made", "two")
    assert (caught.value.kind, caught.value.key) == ("run-unwritable", str(tmp_path / "made"))
    assert texts(tmp_path) == before


@pytest.mark.parametrize("write", [write_text, fill])
def test_a_user_who_stops_a_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[..., None]
) -> None:
    write(tmp_path / "made", "one")
    before = texts(tmp_path)
    monkeypatch.setattr(durable, "sync", stopped)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "made", "two")
    assert texts(tmp_path) == before


def test_what_a_killed_write_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    fill(tmp_path / "made", "one")
    shutil.copytree(tmp_path / "made", tmp_path / ".made.old")
    (tmp_path / ".made.partial" / "half").mkdir(parents=True)
    (tmp_path / ".b.txt.partial").write_text("ha")
    fill(tmp_path / "made", "two")
    write_text(tmp_path / "b.txt", "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.txt", "made"]
    assert "two" in texts(tmp_path / "made").values()


def test_every_file_of_a_folder_is_on_the_disk_before_it_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    sync = durable.sync

    def see(path: Path) -> None:
        assert path == tmp_path or not (tmp_path / "made").exists()
        synced.append(path.name)
        sync(path)

    monkeypatch.setattr(durable, "sync", see)
    fill(tmp_path / "made", "one")
    assert synced[-2:] == [".made.partial", tmp_path.name]
    assert sorted(synced[:-2]) == ["a.txt", "b.txt", "below"]


def test_an_error_in_what_fills_a_file_is_the_callers_own(tmp_path: Path) -> None:
    def write() -> None:
        with write_file(tmp_path / "a") as partial:
            partial.touch()
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        write()
    assert list(tmp_path.iterdir()) == []
