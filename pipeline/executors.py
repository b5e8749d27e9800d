"""Where tasks run: in this process, on a local Dask cluster, or on a scheduler that stands.

An executor yields ``(study, row or error)`` as studies finish. Schedulers from dask-jobqueue,
dask-kubernetes or Coiled hand out an address or a file, and that is all that is needed here.
"""

import faulthandler
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import dask
from dask.distributed import Client, LocalCluster, as_completed, performance_report
from distributed.scheduler import KilledWorker

from pipeline.run import Executor, Task
from pipeline.source.listing import StudyListing
from pipeline.study import StudyRow
from storage_schemas.errors import RunError, StudyError, UsageError, reason_of

CONNECT_SECONDS = 30


@dataclass(frozen=True)
class TaskLimits:
    """What a study may cost its worker.

    Parameters
    ----------
    seconds : float
        After which the worker ends itself, however deep in a decoder it hangs.
    """

    seconds: float = 3600.0


def limited(task: Task, study: StudyListing, limits: TaskLimits) -> StudyRow:
    """Run a task in a worker that ends itself when the time is over.

    The watchdog is a thread of its own that needs no interpreter, so a decoder that holds on to it
    forever cannot stop it. The scheduler then sees a lost worker.
    """
    faulthandler.dump_traceback_later(limits.seconds, exit=True)
    try:
        return task(study)
    finally:
        faulthandler.cancel_dump_traceback_later()


# A study that ends its worker gets one retry elsewhere, then quarantine; and no second study waits
# on a worker, so that none shares the blame.
_SETTINGS = {
    "distributed.scheduler.allowed-failures": 1,
    "distributed.scheduler.worker-saturation": 1.0,
    "distributed.worker.multiprocessing-method": "spawn",
    # Dask lets workers give each freed buffer back to the system at once; getting it again page by
    # page takes a third of a study's time. Here volumes and slices are freed and made all along, so
    # a worker keeps what its largest study needed.
    "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": 1 << 30,
    "distributed.nanny.pre-spawn-environ.MALLOC_MMAP_MAX_": 0,
    "distributed.nanny.pre-spawn-environ.MALLOC_ARENA_MAX": 1,
}


def run_serially(
    task: Task, studies: list[StudyListing]
) -> Iterator[tuple[StudyListing, StudyRow | Exception]]:
    """Run one study after the other in this process."""
    for study in studies:
        try:
            yield study, task(study)
        except Exception as error:  # noqa: BLE001  # one study's failure must not end the run
            yield study, error


@contextmanager
def local_cluster(
    workers: int, memory_bytes: int, limits: TaskLimits, report: str | None = None
) -> Iterator[Executor]:
    """Give an executor on worker processes of this machine; the dashboard is on loopback only.

    Parameters
    ----------
    workers : int
        Processes, each running one study at a time.
    memory_bytes : int
        Of each worker; one that grows beyond it is ended and counts as lost.
    limits : TaskLimits
        Of each task.
    report : str, optional
        Where to write Dask's performance report.
    """
    with (
        # Dask's profiler costs an eighth of a study; only its report shows what it found.
        dask.config.set({**_SETTINGS, "distributed.worker.profile.enabled": report is not None}),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            memory_limit=memory_bytes,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
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
    """Give an executor on a scheduler that somebody else started.

    Parameters
    ----------
    limits : TaskLimits
        Of each task.
    address : str, optional
        ``tcp://host:port`` or ``tls://host:port``.
    file : str, optional
        A scheduler file, as Dask writes it.
    insecure : bool
        Allow an unencrypted address beyond this machine.
    report : str, optional
        Where to write Dask's performance report.

    Raises
    ------
    UsageError
        ``config-invalid`` where the address is refused or the file unreadable.
    RunError
        ``scheduler-unreachable``.
    """
    if file is not None:
        address = _address_in(file)
    if address is None:
        raise UsageError("config-invalid", "no scheduler address is given")
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
        task: Task, studies: list[StudyListing]
    ) -> Iterator[tuple[StudyListing, StudyRow | Exception]]:
        futures = {
            client.submit(
                limited, task, study, limits, key=f"study-{study.key}", priority=-number, pure=False
            ): study
            for number, study in enumerate(studies)
        }
        for future in as_completed(futures):
            study = futures.pop(future)
            try:
                yield study, future.result()
            except KilledWorker:
                reason = "its worker was lost twice"
                yield study, StudyError("worker-lost", reason, key=study.study)
            except Exception as error:  # noqa: BLE001  # one study's failure must not end the run
                yield study, error
            future.release()

    return run


def _address_in(file: str) -> str:
    try:
        return str(json.loads(Path(file).read_text())["address"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError("config-invalid", "no scheduler file of Dask", key=file) from None


def _is_private(address: str) -> bool:
    host = address.removeprefix("tcp://").rsplit(":", 1)[0]
    return address.startswith(("tls://", "inproc://")) or host in (
        "127.0.0.1",
        "localhost",
        "[::1]",
    )
