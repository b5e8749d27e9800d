"""The command line of the pipeline: arguments in, one of the stages out.

Exit codes: 0 all committed; 1 finished, but something is quarantined or damaged; 2 wrong usage or
configuration; 3 the run could not finish.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pipeline import api
from pipeline.config import StudyConfig, check_pattern
from pipeline.flags import STUDY_SETTINGS
from presentation.arguments import integer, number, positive_number, seconds, share
from presentation.commandline import add_command, build_parser, run_command, tell_summary
from presentation.output import write_output
from presentation.progress import StageProgress, say_event, show_table
from storage_schemas.errors import RunError, UsageError, reason_of

# pydicom, scipy and zarr take a second to import: each command imports its own stage.


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; every error is one line."""
    api.quiet_dask()
    return run_command(parser(), arguments, stopped="what is committed stays", extra="pipeline")


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top, commands = build_parser(
        "cspine-pipeline", "Turn DICOM studies of the spine into a store of vertebra crops."
    )

    phantom = add_command(
        commands,
        "phantom",
        _phantom,
        "make a synthetic cohort as real DICOM files",
        "cohort --studies 20 --size 128 --slices 60 --faults",
    )
    phantom.add_argument("out", metavar="OUT", type=Path, help="folder to write to")
    phantom.add_argument(
        "--studies",
        type=integer,
        default=30,
        metavar="N",
        help="number of studies (default: 30)",
    )
    phantom.add_argument(
        "--seed",
        type=number,
        default=0,
        metavar="SEED",
        help="seed of everything sampled (default: 0)",
    )
    phantom.add_argument(
        "--size",
        type=integer,
        default=256,
        metavar="PX",
        help="rows and columns of a slice, in pixels (default: 256)",
    )
    phantom.add_argument(
        "--slices",
        type=integer,
        metavar="N",
        help="number of slices of a study (default: about 100)",
    )
    phantom.add_argument(
        "--faults", action="store_true", help="add one study with each kind of fault"
    )

    look = add_command(
        commands,
        "inspect",
        _inspect,
        "list what run would process or refuse, and why, from headers alone; writes nothing",
        "SOURCE",
    )
    look.add_argument("source", metavar="SOURCE", help="folder or URL of DICOM files")
    _add_layout(look)
    look.add_argument(
        "--series",
        default="",
        metavar="UID|N|REGEX",
        help="series to read where a study has several: a UID, a series number, or a regular"
        " expression that is searched in description and kernel (default: by rule)",
    )

    run = add_command(
        commands,
        "run",
        _run,
        "decode, order, crop and store every study that is missing or changed",
        "SOURCE STORE --masks segmentations --labels train.csv --set max_bad_share=0.1",
    )
    run.add_argument("source", metavar="SOURCE", help="folder or URL of studies")
    run.add_argument("store", metavar="STORE", help="folder or URL of the store")
    _add_layout(run)
    run.add_argument(
        "--series-table",
        metavar="series.csv",
        help="series to read of single studies: a table with the columns study and series",
    )
    run.add_argument(
        "--only-masked",
        action="store_true",
        help="process only studies with a mask; a later run processes the others",
    )
    _add_annotations(run)
    run.add_argument(
        "--limit", type=positive_number, metavar="N", help="process only the first N studies by key"
    )
    run.add_argument(
        "--repair",
        action="store_true",
        help="verify the store first, and process damaged studies again",
    )
    STUDY_SETTINGS.add_to(run)
    _add_workers(run)

    verify = add_command(
        commands,
        "verify",
        _verify,
        "verify checksums of all stored arrays",
        "STORE --source SOURCE --cross-check 0.01",
    )
    verify.add_argument("store", metavar="STORE", help="folder or URL of the store")
    verify.add_argument(
        "--source",
        metavar="SOURCE",
        help="folder or URL of studies; verify that they are unchanged, too",
    )
    _add_layout(verify)
    verify.add_argument(
        "--cross-check",
        type=share,
        default=0.0,
        metavar="SHARE",
        help="also decode this share of the source files with a second decoder and compare, 0 to 1"
        " (default: 0)",
    )

    catalog = add_command(
        commands,
        "catalog",
        _catalog,
        "rebuild the tables of a store from its records",
        "STORE --labels train.csv --boxes train_bounding_boxes.csv",
    )
    catalog.add_argument("store", metavar="STORE", help="folder or URL of the store")
    _add_annotations(catalog)

    report = add_command(
        commands,
        "report",
        _report,
        "write a page about a store, with counts and pictures",
        "STORE preprocessing.html --pages",
    )
    report.add_argument("store", metavar="STORE", help="folder or URL of the store")
    report.add_argument("out", metavar="OUT.html", type=Path, help="page to write")
    report.add_argument(
        "--gallery",
        type=number,
        default=10,
        metavar="N",
        help="number of studies whose slices can be scrolled (default: 10)",
    )
    report.add_argument(
        "--pages",
        action="store_true",
        help="also write pages with pictures of every study, to a folder beside OUT.html",
    )
    report.add_argument(
        "--source", metavar="SOURCE", help="folder or URL of studies; link refused files to it"
    )
    return top


def _add_layout(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--layout",
        choices=("study", "scan"),
        help="study: each folder is a study; scan: headers tell which study a file belongs to"
        " (default: by the names of the folders)",
    )


def _add_annotations(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("labels")
    group.add_argument(
        "--targets",
        metavar="targets.json",
        help="levels, name of the patient's label and weights (default: those of the store, or the"
        " competition's)",
    )
    group.add_argument(
        "--labels", metavar="train.csv", help="labels of the studies, in the competition's format"
    )
    group.add_argument(
        "--boxes",
        metavar="train_bounding_boxes.csv",
        help="bounding boxes of fractures, in the competition's format",
    )
    group.add_argument(
        "--overall",
        choices=("refuse", "mend"),
        default="refuse",
        help="studies whose patient_overall contradicts C1 to C7: refuse the table, or mend their"
        " labels towards the fracture (default: refuse)",
    )


def _add_workers(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("workers", "Where studies are processed.")
    where = group.add_mutually_exclusive_group()
    where.add_argument(
        "--workers",
        type=positive_number,
        metavar="N",
        help="number of worker processes on this machine (default: one for each usable core)",
    )
    where.add_argument("--serial", action="store_true", help="work in this process, without Dask")
    where.add_argument(
        "--scheduler", metavar="ADDR", help="running Dask scheduler, tcp:// or tls:// address"
    )
    where.add_argument(
        "--scheduler-file", metavar="FILE", help="scheduler file of a running Dask scheduler"
    )
    group.add_argument(
        "--insecure", action="store_true", help="allow an unencrypted scheduler beyond this machine"
    )
    group.add_argument(
        "--memory",
        default="4GiB",
        metavar="SIZE",
        help="memory limit of each local worker, in bytes or with a unit (default: 4GiB)",
    )
    group.add_argument(
        "--study-seconds",
        type=seconds,
        default=3600.0,
        metavar="S",
        help="time limit of a study in seconds, after which its worker is stopped (default: 3600)",
    )
    group.add_argument(
        "--performance-report", metavar="OUT.html", help="write Dask's performance report"
    )


def _phantom(options: argparse.Namespace) -> int:
    from pipeline.phantom import FAULTS, make_cohort

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
    from pipeline.inspection import READABLE, inspect_studies
    from pipeline.report.inspection_tables import render
    from pipeline.studies import guess_layout, list_studies
    from storage_schemas.objects import ObjectFolder

    check_pattern(options.series)
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
        series=options.series,
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
    memory = _read_size(options.memory)
    targets = api.choose_targets(options.store, options.targets)
    config = STUDY_SETTINGS.read(options, StudyConfig(vertebrae=targets.levels))
    summary = api.run_pipeline(
        options.source,
        options.store,
        config,
        labels=options.labels,
        boxes=options.boxes,
        targets=options.targets,
        series_table=options.series_table,
        overall=options.overall,
        layout=options.layout,
        only_masked=options.only_masked,
        limit=options.limit,
        repair=options.repair,
        workers=options.workers,
        serial=options.serial,
        scheduler=options.scheduler,
        scheduler_file=options.scheduler_file,
        insecure=options.insecure,
        memory_bytes=memory,
        study_seconds=options.study_seconds,
        performance_report=options.performance_report,
    )
    tell_summary("run", list(summary.to_json().items()), options)
    return summary.exit_code


def _read_size(text: str) -> int:
    """A number of bytes with a unit, e.g. 1.5GiB."""
    from dask.utils import parse_bytes

    try:
        size = int(parse_bytes(text))
    except ValueError:
        size = 0
    if size < 1:
        reason = f"memory: expected a size such as 4GiB, got {text!r}"
        raise UsageError("config-invalid", reason)
    return size


def _verify(options: argparse.Namespace) -> int:
    from pipeline.studies import guess_layout, list_studies
    from pipeline.verify import verify_store
    from storage_schemas.store import StudyStore

    store = StudyStore.open(options.store)
    source = None
    if options.source:
        listings = list_studies(options.source, options.layout or guess_layout(options.source))
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
    from pipeline.tables import build_tables, count_unplaced, known_names
    from storage_schemas.store import StudyStore

    store = StudyStore.open(options.store)
    annotations = api.read_annotations(
        options.store,
        labels=options.labels,
        boxes=options.boxes,
        targets=options.targets,
        overall=options.overall,
    )
    unmatched = api.count_unmatched(annotations, known_names(store), options.labels)
    rows = build_tables(store, annotations)
    counts = {"labels_unmatched": unmatched, "boxes_unplaced": count_unplaced(store)}
    tell_summary("catalog", list((rows | counts).items()), options)
    return 0


def _report(options: argparse.Namespace) -> int:
    from pipeline.report.page import render_report
    from pipeline.source.listing import open_source
    from storage_schemas.store import StudyStore

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


if __name__ == "__main__":
    sys.exit(main())
