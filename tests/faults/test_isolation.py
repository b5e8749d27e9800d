"""A study that ends its worker is retried, then fails, and affects no other study."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config import StudyConfig
from pipeline.executors import TaskLimits, local_cluster, run_serially
from pipeline.run import StudyTask, execute, plan_run
from pipeline.studies import list_studies
from storage_schemas.errors import RunError
from storage_schemas.store import StudyStore
from tests.faults.hostile_tasks import HANGER, KILLER, HostileTask
from tests.studies import write_cohort


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # a killed worker cannot close its sockets
def test_studies_that_kill_or_hang_their_worker_fail_and_the_others_are_committed(
    tmp_path: Path,
) -> None:
    source, _ = write_cohort(tmp_path, studies=5)
    store = StudyStore.create(str(tmp_path / "s"))
    config = StudyConfig()
    plan, _ = plan_run(str(source), store, config)
    with local_cluster(2, 2 << 30, TaskLimits(seconds=6.0)) as executor:

        def hostile_executor(task, studies):  # type: ignore[no-untyped-def]  # the Executor's types
            return executor(HostileTask(**vars(task)), studies)

        rows = []
        summary = execute(plan, hostile_executor, config, store, lambda row, _: rows.append(row))
    assert (summary.committed, summary.quarantined, summary.failed) == (3, 0, 2)
    failed = {row.study: row.kind for row in rows if row.outcome == "failed"}
    assert failed == {KILLER: "worker-lost", HANGER: "worker-lost"}
    for study in ("1.2.3", "1.2.4", "1.2.5"):
        assert store.check(store.record(study)) == []


def test_the_next_run_tries_a_study_again_whose_worker_was_lost(tmp_path: Path) -> None:
    source, _ = write_cohort(tmp_path, studies=1)
    store = StudyStore.create(str(tmp_path / "s"))
    config = StudyConfig()
    plan, _ = plan_run(str(source), store, config)

    def lose(task, studies):  # type: ignore[no-untyped-def]
        return [
            (study, RunError("worker-lost", "lost twice", key=study.study)) for study in studies
        ]

    assert execute(plan, lose, config, store, lambda *_: None).failed == 1
    again, _ = plan_run(str(source), store, config)
    assert [listing.study for listing in again.todo] == ["1.2.1"]
    assert execute(again, run_serially, config, store, lambda *_: None).committed == 1


def test_a_row_of_another_run_is_not_believed(tmp_path: Path) -> None:
    source, _ = write_cohort(tmp_path, studies=1)
    store = StudyStore.create(str(tmp_path / "s"))
    config = StudyConfig()
    plan, _ = plan_run(str(source), store, config)

    def answer_for_another(task, studies):  # type: ignore[no-untyped-def]
        other = StudyTask(config, str(tmp_path / "another store"))
        StudyStore.create(other.store_url)
        return [(study, other(study)) for study in studies]

    rows = []
    summary = execute(plan, answer_for_another, config, store, lambda row, _: rows.append(row))
    assert (summary.committed, summary.failed) == (0, 1)
    assert rows[0].kind == "row-foreign"


def test_keys_of_tasks_differ_wherever_a_result_or_its_place_would(tmp_path: Path) -> None:
    source, _ = write_cohort(tmp_path, studies=2)
    one, two = list_studies(str(source))
    task = StudyTask(StudyConfig(), "file:///a", run="r")
    others = [
        replace(task, store_url="file:///b"),
        replace(task, config=StudyConfig(margin_mm=4)),
        replace(task, run="s"),
    ]
    keys = [task.key(one), task.key(two), *(other.key(one) for other in others)]
    keys.append(task.key(replace(one, objects=one.objects[1:])))
    keys.append(task.key(replace(one, root="file:///another")))
    assert len(set(keys)) == len(keys)
    assert replace(task).key(one) == task.key(one)
