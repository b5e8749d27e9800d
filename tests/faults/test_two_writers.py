"""Two processes commit one study at the same moment: neither fails, and the store is whole."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from pipeline.config import StudyConfig
from pipeline.studies import list_studies
from pipeline.study import process_study
from storage_schemas.store import StudyStore
from tests.studies import write_cohort

TIMES = 60


def commit_often(source: str, store_url: str, times: int) -> int:
    """Commit the same study again and again; returns how often it was done."""
    config = StudyConfig()
    (listing,) = list_studies(source)  # without its mask: this is about writing
    record, objects = process_study(listing, config, threads=1)
    store = StudyStore(store_url)
    for _ in range(times):
        store.commit(record, objects)
    return times


def test_two_processes_that_commit_one_study_leave_it_whole(tmp_path: Path) -> None:
    source, _ = write_cohort(tmp_path, studies=1)
    store = StudyStore.create(str(tmp_path / "store"))
    arguments = (str(source), store.url, TIMES)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        done = [pool.submit(commit_often, *arguments) for _ in range(2)]
        assert [each.result() for each in done] == [TIMES, TIMES]
    (study,) = store.studies()
    assert store.check(store.record(study)) == []
    assert not list(Path(store.url).rglob("*.partial"))
