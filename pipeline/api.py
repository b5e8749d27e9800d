"""The pipeline from Python: ``cspine-pipeline run`` as a function, with the same settings.

`pipeline` itself offers it, as ``pipeline.run_pipeline(...)``. Not here: how a run is planned and
executed (`pipeline.run`), and how a command line shows it (`pipeline.cli`).
"""

import os
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import Layout, StudyConfig
from pipeline.flags import STUDY_SETTINGS
from storage_schemas.errors import StoreError, UsageError

if TYPE_CHECKING:
    from pipeline.run import Executor, RunSummary
    from pipeline.study import StudyRow
    from pipeline.tables import Annotations
    from storage_schemas.annotations import Overall
    from storage_schemas.targets import Targets

# pydicom, scipy and zarr take a second to import, and Dask another: functions import what they use.


def read_config(path: Path | str) -> StudyConfig:
    """Read settings from a TOML file; what it leaves out has its default.

    Parameters
    ----------
    path : path
        File to read.

    Raises
    ------
    UsageError
        ``config-invalid``, naming the file and the field; ``localizer-invalid``.
    """
    return STUDY_SETTINGS.read_file(Path(path), StudyConfig())


def run_pipeline(
    source: str,
    store: str,
    config: StudyConfig | None = None,
    *,
    localizer: str | None = None,
    labels: str | None = None,
    boxes: str | None = None,
    targets: str | None = None,
    series_table: str | None = None,
    overall: "Overall" = "refuse",
    layout: Layout | None = None,
    only_masked: bool = False,
    limit: int | None = None,
    repair: bool = False,
    workers: int | None = None,
    serial: bool = False,
    scheduler: str | None = None,
    scheduler_file: str | None = None,
    insecure: bool = False,
    memory_bytes: int = 4 << 30,
    study_seconds: float = 3600.0,
    performance_report: str | None = None,
) -> "RunSummary":
    """Decode, order, crop and store every study of a source that is missing or changed.

    Progress is shown on standard error. A script that uses worker processes must guard its entry
    point with ``if __name__ == "__main__":``, as for any use of `multiprocessing`.

    Parameters
    ----------
    source : str
        Folder or URL of studies.
    store : str
        Folder or URL of the store, which is made where it is missing.
    config : StudyConfig, optional
        Settings that decide the results. By default those of the command line: the levels of the
        targets are cropped.
    localizer : str, optional
        Path or URL of an ONNX file that finds the vertebrae of studies without a mask; replaces
        that of `config`.
    labels : str, optional
        Path or URL of a CSV file of labels, in the format of the competition. A relative path, as
        those of boxes and masks, is looked for here, then in `source`, then beside it.
    boxes : str, optional
        Path or URL of a CSV file of fracture boxes, in the format of the competition.
    targets : str, optional
        Path or URL of a JSON file of targets; by default those of the store, or the competition's.
    series_table : str, optional
        Path or URL of a CSV file with the columns ``study`` and ``series``: the series to read of
        single studies, in the form of the setting `series`.
    overall : {"refuse", "mend"}
        Whether a patient's label that contradicts the levels' is refused or changed, as
        `storage_schemas.annotations.read_labels` describes.
    layout : {"study", "scan"}, optional
        Whether folders are studies, or headers tell which study a file belongs to; by the names of
        the folders by default.
    only_masked : bool
        Whether to process only studies with a mask.
    limit : int, optional
        Number of studies to process at most, the first by key.
    repair : bool
        Whether to verify the store first, and process damaged studies again.
    workers : int, optional
        Number of local worker processes; by default one for each usable core.
    serial : bool
        Whether to process studies one after another in this process, without Dask.
    scheduler : str, optional
        Address of a running Dask scheduler, ``tcp://host:port`` or ``tls://host:port``.
    scheduler_file : str, optional
        Path of the scheduler file of a running Dask scheduler.
    insecure : bool
        Whether an unencrypted scheduler beyond this machine is allowed.
    memory_bytes : int
        Memory limit of each local worker, in bytes.
    study_seconds : float
        Time limit of a study, in seconds, after which its worker is stopped.
    performance_report : str, optional
        Path of Dask's performance report, an HTML page to write.

    Returns
    -------
    RunSummary
        Counts of the run; its `exit_code` is 0 where all studies are committed.

    Raises
    ------
    UsageError
        ``config-invalid``, ``source-not-found``, ``source-empty``, ``store-unwritable``,
        ``csv-invalid``, ``csv-unknown-study``, ``labels-contradictory``, ``mask-unreadable`` or
        ``localizer-invalid``.
    RunError
        ``scheduler-unreachable``, ``object-unreadable``, or ``store-in-use`` where another run
        writes to the store.
    """
    quiet_dask()
    from pipeline.lease import coordinate
    from pipeline.run import execute, plan_run
    from pipeline.runlog import RunLog
    from pipeline.source.beside import find_beside
    from pipeline.source.listing import open_source
    from pipeline.source.series_table import read_series_table
    from pipeline.tables import build_tables, count_unplaced, refresh_tables
    from pipeline.verify import verify_store
    from pipeline.vertebrae.locate import find_locator
    from pipeline.vertebrae.onnx_network import choose_network
    from presentation.progress import StageProgress, say_event
    from storage_schemas.store import StudyStore

    open_source(source)  # a mistyped source leaves no store behind
    labels, boxes = find_beside(labels, source), find_beside(boxes, source)
    annotations = read_annotations(
        store, labels=labels, boxes=boxes, targets=targets, overall=overall
    )
    config = config or StudyConfig(vertebrae=annotations.targets.levels)
    config = replace(config, masks=find_beside(config.masks, source))
    if localizer is not None:
        config = replace(config, localizer=choose_network(localizer))
    if only_masked and not config.masks:
        raise UsageError("config-invalid", "--only-masked needs --masks")
    if serial and performance_report:
        raise UsageError("config-invalid", "--performance-report is Dask's, not for --serial")
    if config.locate_by:
        find_locator(config.locate_by)
    series = read_series_table(series_table) if series_table else {}
    opened = StudyStore.create(store)
    with coordinate(opened.objects.url_of(""), report=_report_wait) as lease:
        if repair:
            for check in verify_store(opened):
                if check.damage:
                    opened.discard(check.study)
                    say_event("repair", study=check.study, damage=[str(e) for e in check.damage])
        plan, listed = plan_run(
            source,
            opened,
            config,
            layout=layout,
            series=series,
            only_masked=only_masked,
            limit=limit,
        )
        unmatched = count_unmatched(annotations, listed, labels)
        say_event(
            "plan",
            todo=len(plan.todo),
            done=len(plan.done),
            orphan_masks=plan.orphan_masks,
            put_off=plan.put_off,
            ignored=plan.ignored,
        )
        # No cluster is worth its start where nothing is to do.
        here = serial or not (plan.todo or performance_report)
        executor = _executor(
            serial=here,
            workers=workers,
            scheduler=scheduler,
            scheduler_file=scheduler_file,
            insecure=insecure,
            memory_bytes=memory_bytes,
            study_seconds=study_seconds,
            performance_report=performance_report,
        )
        log = RunLog()
        try:
            with executor as run, StageProgress("run", len(plan.todo), "studies") as progress:

                def observe(row: "StudyRow", summary: "RunSummary") -> None:
                    log.add(row)
                    lines = (
                        [f"{row.outcome}: {row.study}: {row.reason} [{row.kind}]"]
                        if row.kind
                        else []
                    )
                    progress.advance(
                        f"{summary.committed} committed, {summary.quarantined} quarantined, "
                        f"{summary.failed} failed, {log.rates(summary)}",
                        lines,
                        study=row.study,
                        outcome=row.outcome,
                        kind=row.kind,
                        reason=row.reason,
                    )

                summary = execute(plan, run, config, opened, observe, None if serial else 1, lease)
        finally:
            opened.write_log(log.name, log.lines)
        if plan.todo:
            build_tables(opened, annotations)
        else:
            refresh_tables(opened, annotations, plan.records)
        unplaced = count_unplaced(opened) if boxes else 0
        return replace(summary, labels_unmatched=unmatched, boxes_unplaced=unplaced)


def _report_wait(holder: str) -> None:
    """Say that the store is in use by another run, which may have ended without a word."""
    from presentation.progress import say_event

    say_event("wait", reason="another run writes to STORE", run=holder)


def quiet_dask() -> None:
    """Set what Dask reads when it is imported: this project reports failures itself."""
    os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", "critical")  # workers inherit it


def _executor(
    *,
    serial: bool,
    workers: int | None,
    scheduler: str | None,
    scheduler_file: str | None,
    insecure: bool,
    memory_bytes: int,
    study_seconds: float,
    performance_report: str | None,
) -> "AbstractContextManager[Executor]":
    from pipeline import executors
    from pipeline.cores import available_cores
    from presentation.output import write_output

    if serial:
        return nullcontext(executors.run_serially)
    if performance_report:
        # Dask writes it when all is done, which is late to learn that it cannot.
        write_output(Path(performance_report), "")
    limits = executors.TaskLimits(study_seconds)
    if scheduler or scheduler_file:
        return executors.scheduler(
            limits, scheduler, scheduler_file, insecure=insecure, report=performance_report
        )
    count = workers or available_cores()
    return executors.local_cluster(count, memory_bytes, limits, performance_report)


def read_annotations(
    store: str,
    *,
    labels: str | None,
    boxes: str | None,
    targets: str | None,
    overall: "Overall" = "refuse",
) -> "Annotations":
    """Read the labels and the boxes of studies, and the targets that name the labels.

    Parameters
    ----------
    store : str
        Folder or URL of the store, whose targets count where none are given.
    labels, boxes, targets : str or None
        Paths or URLs of the files.
    overall : {"refuse", "mend"}
        Whether a patient's label that contradicts the levels' is refused or changed, as
        `storage_schemas.annotations.read_labels` describes.
    """
    from pipeline.tables import Annotations
    from storage_schemas.annotations import read_boxes, read_labels

    chosen = choose_targets(store, targets)
    return Annotations(
        labels=read_labels(labels, chosen, overall) if labels else {},
        boxes=read_boxes(boxes) if boxes else {},
        targets=chosen,
    )


def choose_targets(store: str, targets: str | None) -> "Targets":
    """The targets in a file; without one those of a store, which need not be there yet."""
    from storage_schemas.annotations import load_targets
    from storage_schemas.store import StudyStore
    from storage_schemas.targets import COMPETITION

    if targets:
        return load_targets(targets)
    try:
        return StudyStore.open(store).targets()
    except (UsageError, StoreError):  # no store, or one whose tables are to be rebuilt
        return COMPETITION


def count_unmatched(annotations: "Annotations", known: Collection[str], labels: str | None) -> int:
    """Return how many labelled studies are unknown.

    Boxes are not counted: in the competition's set most studies have none.

    Raises
    ------
    UsageError
        ``csv-unknown-study`` where all of them are unknown.
    """
    from storage_schemas.annotations import check_studies

    return check_studies(annotations.labels, known, labels or "")
