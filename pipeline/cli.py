"""The command line of the pipeline: arguments in, one of the stages out.

Exit codes: 0 all committed; 1 finished, but something is quarantined or damaged; 2 wrong usage or
configuration; 3 the run could not finish.
"""

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from pipeline.config import StudyConfig
from pipeline.cores import available_cores
from pipeline.inspection import READABLE, inspect_studies, render
from pipeline.phantom import FAULTS, make_cohort
from pipeline.run import Executor, RunSummary, execute, plan_run
from pipeline.runlog import RunLog
from pipeline.source.listing import open_source
from pipeline.studies import guess_layout, list_studies
from pipeline.study import StudyRow
from pipeline.tables import Annotations, build_tables, refresh_tables
from pipeline.verify import verify_store
from pipeline.vertebrae.onnx_network import choose_network
from presentation.arguments import at_least, number, positive_number, read, seconds, share
from presentation.commandline import (
    OneLineParser,
    add_shared_flags,
    run_command,
    tell_summary,
)
from presentation.output import write_output
from presentation.progress import StageProgress, say_event, show_table
from storage_schemas.annotations import check_studies, load_targets, read_boxes, read_labels
from storage_schemas.errors import RunError, StoreError, UsageError, reason_of
from storage_schemas.objects import ObjectFolder
from storage_schemas.store import StudyStore
from storage_schemas.targets import COMPETITION, Targets
from storage_schemas.vertebrae import MASK_LABELS, parse_levels


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; every error is one line."""
    # Dask reports what this project already reports, with less; its workers inherit this.
    os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", "critical")
    return run_command(parser(), arguments, stopped="what is committed stays")


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = OneLineParser("cspine-pipeline", description="DICOM studies to vertebra crops")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    phantom = commands.add_parser("phantom", help="make a synthetic cohort as real DICOM files")
    phantom.add_argument("out", metavar="OUT", type=Path)
    phantom.add_argument("--studies", type=int, default=30)
    phantom.add_argument("--seed", type=number, default=0)
    phantom.add_argument("--size", type=int, default=256, help="rows and columns of a slice")
    phantom.add_argument("--slices", type=int, help="slices of a study (default: about 100)")
    phantom.add_argument("--faults", action="store_true", help="add a study of each bad kind")
    phantom.set_defaults(command=_phantom)

    look = commands.add_parser("inspect", help="say what would happen, and why; writes nothing")
    look.add_argument("source", metavar="SOURCE", help="folder or URL of DICOM files")
    look.add_argument("--layout", choices=("study", "scan"), help="default: by the folders' names")
    look.set_defaults(command=_inspect)

    run = commands.add_parser("run", help="decode, order, crop and store every study")
    run.add_argument("source", metavar="SOURCE", help="folder or URL of studies")
    run.add_argument("store", metavar="STORE", help="folder or URL of the store")
    run.add_argument(
        "--layout",
        choices=("study", "scan"),
        default="study",
        help="folders are studies, or headers say which study a file is of",
    )
    run.add_argument("--masks", metavar="URL", help="folder of <study>.nii[.gz] label masks")
    run.add_argument("--mask-labels", choices=sorted(MASK_LABELS), default="rsna")
    run.add_argument(
        "--only-masked", action="store_true", help="only studies with a mask; the others later"
    )
    run.add_argument(
        "--localizer", metavar="model.onnx", help="finds the vertebrae of studies without a mask"
    )
    run.add_argument(
        "--vertebrae",
        type=_levels,
        metavar="C1,...",
        help="levels to crop (default: those of the targets, C1 to C7)",
    )
    run.add_argument("--margin", type=float, default=8.0, metavar="MM")
    run.add_argument(
        "--strict", action="store_true", help="quarantine studies whose geometry is not regular"
    )
    _add_annotations(run)
    run.add_argument("--limit", type=positive_number, metavar="N", help="only the first N studies")
    run.add_argument(
        "--hash-keys",
        action="store_true",
        help="store digests of the objects' keys, where these hold names",
    )
    run.add_argument("--repair", action="store_true", help="verify first, and redo what is damaged")
    run.add_argument(
        "--memory",
        type=_size,
        default="4GiB",
        metavar="SIZE",
        help="of each local worker (default: 4GiB)",
    )
    run.add_argument(
        "--study-seconds",
        type=seconds,
        default=3600.0,
        metavar="S",
        help="after which a study's worker is given up (default: 3600)",
    )
    run.add_argument("--performance-report", metavar="OUT.html", help="write Dask's own report")
    where = run.add_mutually_exclusive_group()
    where.add_argument(
        "--workers", type=positive_number, metavar="N", help="local worker processes"
    )
    where.add_argument("--serial", action="store_true", help="in this process, without Dask")
    where.add_argument("--scheduler", metavar="ADDR", help="tcp:// or tls:// address")
    where.add_argument("--scheduler-file", metavar="F")
    run.add_argument(
        "--insecure", action="store_true", help="allow an unencrypted scheduler beyond this machine"
    )
    run.set_defaults(command=_run)

    verify = commands.add_parser("verify", help="prove every stored array against its record")
    verify.add_argument("store", metavar="STORE")
    verify.add_argument("--source", metavar="SOURCE", help="prove the inputs unchanged, too")
    verify.add_argument("--layout", choices=("study", "scan"), default="study")
    verify.add_argument(
        "--cross-check",
        type=share,
        default=0.0,
        metavar="FRACTION",
        help="of SOURCE's objects, decode so many with a second decoder, too",
    )
    verify.set_defaults(command=_verify)

    catalog = commands.add_parser("catalog", help="rebuild the tables from the records")
    catalog.add_argument("store", metavar="STORE")
    _add_annotations(catalog)
    catalog.set_defaults(command=_catalog)

    report = commands.add_parser("report", help="write a page of counts and pictures")
    report.add_argument("store", metavar="STORE")
    report.add_argument("out", metavar="OUT.html", type=Path)
    report.add_argument(
        "--gallery",
        type=number,
        default=10,
        metavar="N",
        help="studies whose slices can be scrolled (default: 10)",
    )
    report.add_argument(
        "--pages", action="store_true", help="write pages of every study's pictures beside OUT.html"
    )
    report.add_argument("--source", metavar="SOURCE", help="link refused objects to it")
    report.set_defaults(command=_report)

    add_shared_flags(commands)
    return top


def _add_annotations(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--targets",
        metavar="targets.json",
        help="levels, patient's label and weights (default: the store's, or the competition's)",
    )
    command.add_argument("--labels", metavar="train.csv")
    command.add_argument("--boxes", metavar="train_bounding_boxes.csv")


def _size(text: str) -> int:
    """A number of bytes with a unit, e.g. 1.5GiB."""
    from dask.utils import parse_bytes

    return at_least(1, int(read(text, parse_bytes, "size such as 4GiB")))


def _levels(text: str) -> tuple[str, ...]:
    """Names of vertebrae, with commas between."""
    try:
        return parse_levels(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(error.detail) from None


def _phantom(options: argparse.Namespace) -> int:
    total = options.studies + (len(FAULTS) if options.faults else 0)
    with StageProgress("phantom", total, "studies") as progress:
        cohort = make_cohort(
            options.out,
            studies=options.studies,
            seed=options.seed,
            size=options.size,
            slices=options.slices,
            faults=options.faults,
            progress=progress.reach,
        )
    rows = [("studies", cohort.studies), ("slices", cohort.slices), ("folder", str(options.out))]
    tell_summary("phantom", rows, options)
    return 0


def _inspect(options: argparse.Namespace) -> int:
    layout = options.layout or guess_layout(options.source)
    listings = list_studies(options.source, layout)
    folder = ObjectFolder(listings[0].root)

    def head(key: str, count: int) -> bytes:
        try:
            return folder.get(key, 0, count)
        except OSError as error:
            raise RunError("object-unreadable", reason_of(error), key=key) from None

    inspection = inspect_studies(
        [(study.study, [(entry.key, entry.size) for entry in study.objects]) for study in listings],
        head,
        layout=layout,
    )
    if options.json:
        print(json.dumps({"stage": "inspect"} | inspection.to_json()))
    else:
        render(inspection)
        rows: list[tuple[str, object]] = [("layout", layout), ("listed", len(listings))]
        rows.append(("readable", inspection.readable))
        refused = Counter(s.outcome for s in inspection.studies if s.outcome != READABLE)
        show_table("inspect", [*rows, *sorted(refused.items())])
    return 0 if inspection.readable == len(listings) else 1


def _run(options: argparse.Namespace) -> int:
    if options.only_masked and not options.masks:
        raise UsageError("config-invalid", "--only-masked needs --masks")
    annotations = _annotations(options)
    config = StudyConfig(
        masks=options.masks,
        mask_labels=options.mask_labels,
        localizer=choose_network(options.localizer) if options.localizer else None,
        vertebrae=options.vertebrae or annotations.targets.levels,
        margin_mm=options.margin,
        strict=options.strict,
        hash_keys=options.hash_keys,
    )
    open_source(options.source)  # a mistyped SOURCE leaves no STORE behind
    store = StudyStore.create(options.store)
    if options.repair:
        for check in verify_store(store):
            if check.damage:
                store.discard(check.study)
                say_event("repair", study=check.study, damage=[str(e) for e in check.damage])
    plan, listed = plan_run(
        options.source,
        store,
        config,
        layout=options.layout,
        only_masked=options.only_masked,
        limit=options.limit,
    )
    _check_annotations(annotations, listed, options)
    say_event(
        "plan",
        todo=len(plan.todo),
        done=len(plan.done),
        orphan_masks=plan.orphan_masks,
        put_off=plan.put_off,
    )
    log = RunLog()
    try:
        with (
            _executor(options, idle=not plan.todo) as executor,
            StageProgress("run", len(plan.todo), "studies") as progress,
        ):

            def observe(row: StudyRow, summary: RunSummary) -> None:
                log.add(row)
                lines = (
                    [f"{row.outcome}: {row.study}: {row.reason} [{row.kind}]"] if row.kind else []
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

            threads = None if options.serial else 1
            summary = execute(plan, executor, config, store, observe, threads)
    finally:
        store.write_log(log.name, log.lines)
    if plan.todo:
        build_tables(store, annotations)
    else:
        refresh_tables(store, annotations, plan.records)
    tell_summary("run", list(summary.to_json().items()), options)
    return summary.exit_code


def _executor(options: argparse.Namespace, *, idle: bool) -> AbstractContextManager[Executor]:
    # Dask costs a second to import, which the other commands need not pay.
    from pipeline import executors

    report = options.performance_report
    if options.serial:
        if report:
            raise UsageError("config-invalid", "--performance-report is Dask's, not for --serial")
        return nullcontext(executors.run_serially)
    if idle and not report:  # no cluster is worth its start
        return nullcontext(executors.run_serially)
    if report:
        # Dask writes it when all is done, which is late to learn that it cannot.
        write_output(Path(report), "")
    limits = executors.TaskLimits(options.study_seconds)
    if options.scheduler or options.scheduler_file:
        address, file = options.scheduler, options.scheduler_file
        return executors.scheduler(limits, address, file, insecure=options.insecure, report=report)
    workers = options.workers or available_cores()
    return executors.local_cluster(workers, options.memory, limits, report)


def _verify(options: argparse.Namespace) -> int:
    store = StudyStore.open(options.store)
    source = None
    if options.source:
        listings = list_studies(options.source, options.layout)
        source = {listing.key: listing for listing in listings}
    elif options.cross_check:
        raise UsageError("config-invalid", "--cross-check needs --source, to read it again")
    totals = {"studies": 0, "arrays": 0, "objects": 0, "decoded_twice": 0, "damaged_studies": 0}
    with StageProgress("verify", len(store.studies()), "studies") as progress:
        for check in verify_store(store, source, options.cross_check):
            found = (1, check.arrays, check.objects, check.decoded_twice, bool(check.damage))
            for name, count in zip(totals, found, strict=True):
                totals[name] += count
            damage = [str(error) for error in check.damage]
            progress.advance(
                lines=[f"damaged: {d}" for d in damage], study=check.study, damage=damage
            )
    tell_summary("verify", list(totals.items()), options)
    return 1 if totals["damaged_studies"] else 0


def _catalog(options: argparse.Namespace) -> int:
    store = StudyStore.open(options.store)
    annotations = _annotations(options)
    _check_annotations(annotations, store.studies(), options)
    tell_summary("catalog", list(build_tables(store, annotations).items()), options)
    return 0


def _report(options: argparse.Namespace) -> int:
    # Plots cost half a second to import, which the other commands need not pay.
    from pipeline.report.page import render_report

    out: Path = options.out
    store = StudyStore.open(options.store)
    source = open_source(options.source).url_of("") if options.source else None
    pages = f"{out.stem}-studies" if options.pages else None
    written = size = damaged = 0
    for page in render_report(
        store, gallery=options.gallery, name=out.name, pages=pages, source=source
    ):
        size += write_output(out.parent / page.name, page.html)
        written += 1
        damaged += len(page.damaged)
        say_event("report", page=page.name, damage=page.damaged)
    rows: list[tuple[str, object]] = [("pages", written), ("bytes", size), ("damaged", damaged)]
    tell_summary("report", rows, options, {"report": out})
    return 1 if damaged else 0


def _annotations(options: argparse.Namespace) -> Annotations:
    targets = load_targets(options.targets) if options.targets else _stored_targets(options.store)
    return Annotations(
        labels=read_labels(options.labels, targets) if options.labels else {},
        boxes=read_boxes(options.boxes) if options.boxes else {},
        targets=targets,
    )


def _stored_targets(url: str) -> Targets:
    """The targets of a store that may not be there yet, or whose tables are to be rebuilt."""
    try:
        return StudyStore.open(url).targets()
    except (UsageError, StoreError):
        return COMPETITION


def _check_annotations(
    annotations: Annotations, known: Sequence[str], options: argparse.Namespace
) -> None:
    check_studies(annotations.labels, known, options.labels)
    check_studies(annotations.boxes, known, options.boxes)


if __name__ == "__main__":
    sys.exit(main())
