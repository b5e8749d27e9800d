"""Executors: run tasks in this process, on a local Dask cluster, or on an existing scheduler.

An executor yields ``(study, row or error)`` as studies finish. An existing scheduler is given by
its address or its scheduler file, which dask-jobqueue, dask-kubernetes and Coiled all provide.
"""

import faulthandler
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import dask
from dask.distributed import Client, LocalCluster, Security, as_completed, performance_report
from distributed.scheduler import KilledWorker

from pipeline.run import Executor, StudyTask
from pipeline.source.listing import StudyListing
from pipeline.study import StudyRow
from storage_schemas.errors import RunError, UsageError, reason_of

CONNECT_SECONDS = 30


@dataclass(frozen=True)
class TaskLimits:
    """Limits of one task.

    Parameters
    ----------
    seconds : float
        Time limit in seconds, after which the worker process exits, even from inside a decoder.
    """

    seconds: float = 3600.0


def limited(task: StudyTask, study: StudyListing, limits: TaskLimits) -> StudyRow:
    """Run a task in a worker process that exits at the time limit.

    The watchdog of `faulthandler` is a native thread that does not need the GIL, so a decoder that
    hangs while it holds the GIL is stopped too. The scheduler then sees a lost worker.

    Parameters
    ----------
    task : callable
        Function of a study that returns its `StudyRow`.
    study : StudyListing
        Study to process.
    limits : TaskLimits
        Limits of the task.
    """
    faulthandler.dump_traceback_later(limits.seconds, exit=True)
    try:
        return task(study)
    finally:
        faulthandler.cancel_dump_traceback_later()


# A study that ends its worker is retried once on another worker, then quarantined. Workers hold no
# second study in their queue, so that no other study is counted as failed with it.
_SETTINGS = {
    "distributed.scheduler.allowed-failures": 1,
    "distributed.scheduler.worker-saturation": 1.0,
    "distributed.worker.multiprocessing-method": "spawn",
    # By default, Dask lets workers return each freed buffer to the system at once; the page faults
    # of allocating it again take a third of a study's time. Volumes and slices are allocated and
    # freed all the time, so a worker keeps the memory of its largest study.
    "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": 1 << 30,
    "distributed.nanny.pre-spawn-environ.MALLOC_MMAP_MAX_": 0,
    "distributed.nanny.pre-spawn-environ.MALLOC_ARENA_MAX": 1,
}


def run_serially(
    task: StudyTask, studies: list[StudyListing]
) -> Iterator[tuple[StudyListing, StudyRow | Exception]]:
    """Run the studies one after the other in this process."""
    for study in studies:
        try:
            yield study, task(study)
        except Exception as error:  # noqa: BLE001  # one study's failure must not end the run
            yield study, error


@contextmanager
def local_cluster(
    workers: int, memory_bytes: int, limits: TaskLimits, report: str | None = None
) -> Iterator[Executor]:
    """Start an executor on local worker processes, with the dashboard on the loopback interface.

    Parameters
    ----------
    workers : int
        Number of worker processes, each running one study at a time.
    memory_bytes : int
        Memory limit of each worker; a worker that exceeds it is terminated and counts as lost.
    limits : TaskLimits
        Limits of each task.
    report : str, optional
        Path of Dask's performance report.

    Yields
    ------
    Executor
        Executor that is valid inside the context.
    """
    with (
        # Dask's profiler takes an eighth of the time, and is needed for the report only.
        dask.config.set({**_SETTINGS, "distributed.worker.profile.enabled": report is not None}),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            memory_limit=memory_bytes,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            # Loopback is open to every user of this machine, and a worker runs what it is sent.
            security=Security.temporary(),
        ) as cluster,
        Client(cluster) as client,
        performance_report(report) if report else nullcontext(),
    ):
        yield _on(client, limits)


@contextmanager
def scheduler(
    limits: TaskLimits,
    address: str | None = None,
    file: str | None = None,
    *,
    insecure: bool = False,
    report: str | None = None,
) -> Iterator[Executor]:
    """Connect an executor to an existing Dask scheduler.

    Parameters
    ----------
    limits : TaskLimits
        Limits of each task.
    address : str, optional
        Address ``tcp://host:port`` or ``tls://host:port`` of the scheduler.
    file : str, optional
        Path of a scheduler file that Dask wrote, instead of the address.
    insecure : bool
        Whether to allow an unencrypted address on another machine.
    report : str, optional
        Path of Dask's performance report.

    Yields
    ------
    Executor
        Executor that is valid inside the context.

    Raises
    ------
    UsageError
        ``config-invalid`` where the address is not allowed or the file cannot be read.
    RunError
        ``scheduler-unreachable`` where no connection can be made.
    """
    if file is not None:
        address = _address_in(file)
    if address is None:
        raise UsageError("config-invalid", "a scheduler address or a scheduler file is needed")
    if not insecure and not _is_private(address):
        raise UsageError(
            "config-invalid",
            f"{address} is neither tls:// nor on this machine; --insecure allows it",
        )
    try:
        with (
            dask.config.set(_SETTINGS),
            Client(address, timeout=CONNECT_SECONDS) as client,
            performance_report(report) if report else nullcontext(),
        ):
            yield _on(client, limits)
    except OSError as error:
        raise RunError("scheduler-unreachable", reason_of(error), key=address) from None


def _on(client: Client, limits: TaskLimits) -> Executor:
    def run(
        task: StudyTask, studies: list[StudyListing]
    ) -> Iterator[tuple[StudyListing, StudyRow | Exception]]:
        futures = {
            client.submit(
                limited, task, study, limits, key=task.key(study), priority=-number, pure=False
            ): study
            for number, study in enumerate(studies)
        }
        for future in as_completed(futures):
            study = futures.pop(future)
            try:
                yield study, future.result()
            except KilledWorker:
                reason = "its worker was lost twice, to memory, time or a decoder"
                yield study, RunError("worker-lost", reason, key=study.study)
            except Exception as error:  # noqa: BLE001  # one study's failure must not end the run
                yield study, error
            future.release()

    return run


def _address_in(file: str) -> str:
    try:
        return str(json.loads(Path(file).read_text())["address"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError("config-invalid", "not a Dask scheduler file", key=file) from None


def _is_private(address: str) -> bool:
    host = address.removeprefix("tcp://").rsplit(":", 1)[0]
    return address.startswith(("tls://", "inproc://")) or host in (
        "127.0.0.1",
        "localhost",
        "[::1]",
    )
