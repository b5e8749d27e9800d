from pathlib import Path

import pytest

from storage_schemas.errors import UsageError
from storage_schemas.store import StudyStore
from tests.cohorts import make_study
from training.data.cohort import Study
from training.data.crop_buffer import open_buffer
from training.runs import HISTORY, SETTINGS, RunFolder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.create()
    return folder


def test_documents_and_journals_read_back_equal(run: RunFolder) -> None:
    run.write(SETTINGS, {"a": [1, None]})
    for number in (1, 2):
        run.append(HISTORY, {"round": number})
    assert run.read(SETTINGS) == {"a": [1, None]}
    assert run.lines(HISTORY) == [{"round": 1}, {"round": 2}]
    assert run.lines("nothing.jsonl") == []


def test_a_line_that_a_kill_cut_short_is_no_line(run: RunFolder) -> None:
    run.append(HISTORY, {"round": 1})
    with (run.path / HISTORY).open("a") as stream:
        stream.write('{"round": 2, "stud')
    assert run.lines(HISTORY) == [{"round": 1}]


def test_a_journal_continues_after_a_partial_line(run: RunFolder) -> None:
    run.append(HISTORY, {"round": 1})
    with (run.path / HISTORY).open("a") as stream:
        stream.write('{"round": 2, "stud')
    run.append(HISTORY, {"round": 2})
    assert run.lines(HISTORY) == [{"round": 1}, {"round": 2}]


@pytest.mark.parametrize("text", ["", "{", '{"a": 1'])
def test_a_damaged_document_is_named(run: RunFolder, text: str) -> None:
    (run.path / SETTINGS).write_text(text)
    with pytest.raises(UsageError, match=SETTINGS) as caught:
        run.read(SETTINGS)
    assert caught.value.kind == "config-invalid"


def test_a_missing_document_is_named(run: RunFolder) -> None:
    with pytest.raises(UsageError, match=f"no {SETTINGS} in RUN"):
        run.read(SETTINGS)


def test_a_run_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="config-invalid"):
        RunFolder(tmp_path / "file").read(SETTINGS)


def test_a_run_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot create"):
        RunFolder(tmp_path / "file" / "run").create()


@pytest.mark.parametrize("studies", [(), (Study("1.1", "1.1", "", None, ()),)])
def test_studies_without_crops_are_an_empty_round(
    tmp_path: Path, studies: tuple[Study, ...]
) -> None:
    store = StudyStore.create(str(tmp_path / "store"))
    with open_buffer(store, studies, tmp_path) as buffer:
        assert buffer.vertebrae == ()


def test_nothing_is_left_behind_where_a_shard_is_missing(tmp_path: Path) -> None:
    store = StudyStore.create(str(tmp_path / "store"))
    (tmp_path / "run").mkdir()
    with (
        pytest.raises(Exception, match=r"1\.1/C\d/0"),
        open_buffer(store, [make_study("1.1")], tmp_path / "run"),
    ):
        pass
    assert list((tmp_path / "run").iterdir()) == []
