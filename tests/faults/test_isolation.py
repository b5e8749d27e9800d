"""A study that ends its worker is retried, then quarantined, and affects no other study."""

from functools import partial
from pathlib import Path

import pytest

from pipeline.config import StudyConfig
from pipeline.executors import TaskLimits, local_cluster
from pipeline.run import execute, plan_run
from storage_schemas.store import StudyStore
from tests.faults.hostile_tasks import HANGER, KILLER, hostile
from tests.studies import write_cohort


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # a killed worker cannot close its sockets
def test_studies_that_kill_or_hang_their_worker_are_quarantined_and_the_others_committed(
    tmp_path: Path,
) -> None:
    source, _ = write_cohort(tmp_path, studies=5)
    store = StudyStore.create(str(tmp_path / "s"))
    config = StudyConfig()
    plan, _ = plan_run(str(source), store, config)
    with local_cluster(2, 2 << 30, TaskLimits(seconds=6.0)) as executor:

        def hostile_executor(task, studies):  # type: ignore[no-untyped-def]  # the Executor's types
            return executor(partial(hostile, store_url=store.url), studies)

        summary = execute(plan, hostile_executor, config, store, lambda row, summary: None)
    assert (summary.committed, summary.quarantined, summary.failed) == (3, 2, 0)
    for study in (KILLER, HANGER):
        record = store.record(study)
        assert (record.outcome, record.kind) == ("quarantined", "worker-lost")
        assert len(record.inputs) == 32
    for study in ("1.2.3", "1.2.4", "1.2.5"):
        assert store.check(store.record(study)) == []
