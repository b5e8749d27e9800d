"""The command line of the pipeline: arguments in, one of the stages out.

Exit codes: 0 all committed; 1 finished, but something is quarantined or damaged; 2 wrong usage or
configuration; 3 the run could not finish.
"""

import argparse
import json
import logging
import sys
import traceback
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from pipeline.catalog import Annotations, build_tables
from pipeline.config import StudyConfig
from pipeline.inspect import inspect_studies, render
from pipeline.listing import guess_layout, list_studies
from pipeline.network import choose_network
from pipeline.phantom import FAULTS, make_cohort
from pipeline.progress import StageProgress, say_event, show_table
from pipeline.report import GALLERY, render_report
from pipeline.run import Executor, RunSummary, execute, plan_run
from pipeline.runlog import RunLog
from pipeline.study import StudyRow
from pipeline.verify import verify_store
from storage_schemas.annotations import check_studies, read_boxes, read_labels
from storage_schemas.errors import CspineError, RunError, UsageError
from storage_schemas.objects import ObjectFolder
from storage_schemas.store import StudyStore
from storage_schemas.vertebrae import CERVICAL, MASK_LABELS, parse_levels


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = parser().parse_args(arguments)
    # Libraries report what this project already reports, with less.
    logging.getLogger("distributed").setLevel(logging.ERROR)
    try:
        return int(options.command(options))
    except CspineError as error:
        if options.verbose:
            traceback.print_exc()
        print(f"cspine-pipeline: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("cspine-pipeline: stopped; what is committed stays", file=sys.stderr)
        return 3


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser("cspine-pipeline", description="DICOM studies to vertebra crops")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    phantom = commands.add_parser("phantom", help="make a synthetic cohort as real DICOM files")
    phantom.add_argument("out", metavar="OUT", type=Path)
    phantom.add_argument("--studies", type=int, default=30)
    phantom.add_argument("--seed", type=int, default=0)
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
    run.add_argument("--vertebrae", type=parse_levels, default=CERVICAL, metavar="C1,...")
    run.add_argument("--margin", type=float, default=8.0, metavar="MM")
    run.add_argument(
        "--strict", action="store_true", help="quarantine studies whose geometry is not regular"
    )
    _add_annotations(run)
    run.add_argument("--limit", type=_positive, metavar="N", help="only the first N studies")
    run.add_argument(
        "--hash-keys",
        action="store_true",
        help="store digests of the objects' keys, where these hold names",
    )
    run.add_argument("--repair", action="store_true", help="verify first, and redo what is damaged")
    run.add_argument(
        "--memory",
        type=_bytes,
        default="4GiB",
        metavar="SIZE",
        help="of each local worker (default: 4GiB)",
    )
    run.add_argument(
        "--study-seconds",
        type=float,
        default=3600.0,
        metavar="S",
        help="after which a study's worker is given up (default: 3600)",
    )
    run.add_argument("--performance-report", metavar="OUT.html", help="write Dask's own report")
    where = run.add_mutually_exclusive_group()
    where.add_argument("--workers", type=_positive, metavar="N", help="local worker processes")
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
        type=float,
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
    report.add_argument("--gallery", type=int, default=GALLERY, help="studies with pictures")
    report.set_defaults(command=_report)

    for command in commands.choices.values():
        command.add_argument("--json", action="store_true", help="print one summary object last")
        command.add_argument("--verbose", action="store_true", help="show tracebacks")
    return top


def _add_annotations(command: argparse.ArgumentParser) -> None:
    command.add_argument("--labels", metavar="train.csv")
    command.add_argument("--boxes", metavar="train_bounding_boxes.csv")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def _bytes(text: str) -> int:
    """A number of bytes with a unit, e.g. 1.5GiB."""
    from dask.utils import parse_bytes

    return int(parse_bytes(text))


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
            progress=lambda done, total: progress.advance(),
        )
    rows = [("studies", cohort.studies), ("slices", cohort.slices), ("folder", str(options.out))]
    _tell("phantom", rows, options)
    return 0


def _inspect(options: argparse.Namespace) -> int:
    listings = list_studies(options.source, options.layout or guess_layout(options.source))
    folder = ObjectFolder(listings[0].root)

    def head(key: str, count: int) -> bytes:
        try:
            return folder.get(key, 0, count)
        except OSError as error:
            raise RunError("object-unreadable", str(error), key=folder.url_of(key)) from None

    inspection = inspect_studies(
        [(study.study, [(entry.key, entry.size) for entry in study.objects]) for study in listings],
        head,
    )
    if options.json:
        print(json.dumps(inspection.to_json()))
    else:
        render(inspection)
    return 0 if inspection.readable == len(listings) else 1


def _run(options: argparse.Namespace) -> int:
    if options.only_masked and not options.masks:
        raise UsageError("config-invalid", "--only-masked needs --masks")
    config = StudyConfig(
        masks=options.masks,
        mask_labels=options.mask_labels,
        localizer=choose_network(options.localizer) if options.localizer else None,
        vertebrae=options.vertebrae,
        margin_mm=options.margin,
        strict=options.strict,
        hash_keys=options.hash_keys,
    )
    annotations = _annotations(options)
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
            _executor(options) as executor,
            StageProgress("run", len(plan.todo), "studies") as progress,
        ):

            def observe(row: StudyRow, summary: RunSummary) -> None:
                log.add(row)
                progress.advance(
                    f"{summary.committed} committed, {summary.quarantined} quarantined, "
                    f"{summary.failed} failed, {log.rates(summary)}",
                    study=row.study,
                    outcome=row.outcome,
                    kind=row.kind,
                    reason=row.reason,
                )

            threads = None if options.serial else 1
            summary = execute(plan, executor, config, store, observe, threads)
    finally:
        store.write_log(log.name, log.lines)
    build_tables(store, annotations)
    _tell("run", list(summary.to_json().items()), options)
    return summary.exit_code


def _executor(options: argparse.Namespace) -> AbstractContextManager[Executor]:
    # Dask costs a second to import, which the other commands need not pay.
    from pipeline import executors

    if options.serial:
        return nullcontext(executors.run_serially)
    limits = executors.TaskLimits(options.study_seconds)
    report = options.performance_report
    if options.scheduler or options.scheduler_file:
        address, file = options.scheduler, options.scheduler_file
        return executors.scheduler(limits, address, file, insecure=options.insecure, report=report)
    workers = options.workers or executors.available_cores()
    return executors.local_cluster(workers, options.memory, limits, report)


def _verify(options: argparse.Namespace) -> int:
    store = StudyStore.open(options.store)
    source = None
    if options.source:
        listings = list_studies(options.source, options.layout)
        source = {listing.key: listing for listing in listings}
    elif options.cross_check:
        raise UsageError("config-invalid", "--cross-check needs --source, to read it again")
    totals = {"studies": 0, "arrays": 0, "objects": 0, "decoded twice": 0, "damaged studies": 0}
    with StageProgress("verify", len(store.studies()), "studies") as progress:
        for check in verify_store(store, source, options.cross_check):
            found = (1, check.arrays, check.objects, check.decoded_twice, bool(check.damage))
            for name, count in zip(totals, found, strict=True):
                totals[name] += count
            progress.advance(study=check.study, damage=[str(error) for error in check.damage])
            for error in check.damage:
                print(f"damaged: {error}", file=sys.stderr)
    _tell("verify", list(totals.items()), options)
    return 1 if totals["damaged studies"] else 0


def _catalog(options: argparse.Namespace) -> int:
    store = StudyStore.open(options.store)
    annotations = _annotations(options)
    _check_annotations(annotations, store.studies(), options)
    _tell("catalog", list(build_tables(store, annotations).items()), options)
    return 0


def _report(options: argparse.Namespace) -> int:
    page = render_report(StudyStore.open(options.store), gallery=options.gallery)
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(page)
    except OSError as error:
        raise UsageError("config-invalid", f"{error.strerror}", key=str(options.out)) from None
    print(f"report: {options.out}")
    return 0


def _annotations(options: argparse.Namespace) -> Annotations:
    return Annotations(
        labels=read_labels(options.labels) if options.labels else {},
        boxes=read_boxes(options.boxes) if options.boxes else {},
    )


def _check_annotations(
    annotations: Annotations, known: list[str], options: argparse.Namespace
) -> None:
    check_studies(annotations.labels, known, options.labels)
    check_studies(annotations.boxes, known, options.boxes)


def _tell(stage: str, rows: Sequence[tuple[str, object]], options: argparse.Namespace) -> None:
    if options.json:
        print(json.dumps({"stage": stage} | dict(rows)))
    else:
        show_table(stage, rows)


if __name__ == "__main__":
    sys.exit(main())
