"""Preprocessing at full size on one machine: 2,019 studies, 711,601 slices, through Dask.

A few phantom studies in JPEG Lossless at 512 x 512, with masks, are presented as 2,019 (see
`big_bucket`), and the `run` command preprocesses all of them. For comparison, a bare loop with as
many processes only fetches, decodes and compresses the same bytes: a few studies before the run,
after it, and at intervals during which the run is halted, because the speed of a shared machine
varies.

    python benchmarks/full_scale.py --fraction 0.02
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import big_bucket
import numpy as np
from bare_loop import BareLoop
from claims import Claim, describe_machine, report
from processes import PeakMemory, halted, watched

from pipeline.cores import available_cores
from pipeline.phantom.cohort import write_mask
from pipeline.phantom.patient import sample_patient
from pipeline.phantom.render import Grid, render_patient
from pipeline.phantom.scanner import SITES, Series, acquire, make_slice, save_slice
from storage_schemas.store import StudyStore
from storage_schemas.targets import COMPETITION

STUDIES, SLICES = 2_019, 711_601
"""Number of studies in the competition's training set."""
SITE = replace(SITES[2], fov_mm=(150, 150))
PACKAGES = ("dask", "distributed", "zarr", "numcodecs", "imagecodecs", "pydicom", "numpy")
BARE_EVERY_S = 150.0


# ---- the bucket ----------------------------------------------------------------------------------


def make_bucket(folder: Path, templates: int, fraction: float, size: int) -> int:
    """Write the real studies and the list of presented ones; return the number of slices."""
    studies = max(templates, round(STUDIES * fraction))
    total = round(studies * SLICES / STUDIES)
    counts = [total // studies + (number < total % studies) for number in range(studies)]
    write = partial(_write_template, folder=folder, slices=max(counts), size=size)
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        made = list(pool.map(write, range(templates)))
    bucket = {"slices": counts, "sizes": made}
    bucket["masks"] = [
        (folder / f"{big_bucket.template_uid(n)}.nii.gz").stat().st_size for n in range(templates)
    ]
    (folder / "bucket.json").write_text(json.dumps(bucket))
    return total


def make_empty_bucket(folder: Path) -> None:
    """Present as many studies of one object that is not DICOM, to measure the overhead."""
    study = folder / big_bucket.template_uid(0)
    study.mkdir(parents=True)
    (study / "0.dcm").write_bytes(b"none")
    bucket = {"slices": [1] * STUDIES, "sizes": [[4]], "masks": [0]}
    (folder / "bucket.json").write_text(json.dumps(bucket))


def _write_template(number: int, folder: Path, slices: int, size: int) -> list[int]:
    random = np.random.default_rng(number)
    patient = sample_patient(random)
    pixel = 150 / size
    x = (np.arange(size) - (size - 1) / 2) * pixel
    grid = Grid(x, x + 10, np.linspace(-106, 82, slices) * patient.size, 0.0)
    scan = render_patient(patient, {}, grid, random)
    stored = acquire(scan.hu, grid, SITE, random)
    study = big_bucket.template_uid(number)
    series = Series(study, f"{study}.1", f"PHANTOM-{number:05d}", reversed_numbers=True)
    (folder / study).mkdir()
    sizes = []
    for z in range(slices):
        path = folder / study / f"{z}.dcm"
        save_slice(make_slice(stored[z], z, grid, SITE, series), path)
        sizes.append(path.stat().st_size)
    write_mask(scan, grid, folder / f"{study}.nii.gz")
    return sizes


# ---- the run -------------------------------------------------------------------------------------


def preprocess(
    bucket: str,
    store: str,
    workers: int,
    *more: str,
    masks: bool = True,
    beside: BareLoop | None = None,
) -> tuple[dict[str, Any], float, PeakMemory]:
    """Run the command; return its summary, wall seconds and memory.

    Every `BARE_EVERY_S` seconds the run is halted for a turn of the bare loop, whose time is not
    counted.
    """
    command = [
        *(sys.executable, "-c"),
        "import sys, big_bucket; from pipeline.cli import main; sys.exit(main(sys.argv[1:]))",
        *("run", f"{bucket}/{big_bucket.SOURCE}", store, "--workers", str(workers), "--json"),
        *(("--masks", f"{bucket}/{big_bucket.MASKS}") if masks else ()),
        *more,
    ]
    start = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    paused = 0.0
    with watched(process) as peak:
        while True:
            try:
                out, _ = process.communicate(timeout=BARE_EVERY_S if beside else None)
                break
            except subprocess.TimeoutExpired:
                assert beside
                stopped = time.perf_counter()
                with halted(process.pid):
                    beside.take_turn()
                paused += time.perf_counter() - stopped
    seconds = time.perf_counter() - start - paused
    if process.returncode not in (0, 1):  # 1: something is quarantined, here the empty studies
        raise SystemExit(f"the run ended with {process.returncode}: {out[-500:]}")
    return json.loads(out.splitlines()[-1]), seconds, peak


def boxes_of(store: StudyStore, templates: int) -> list[list[list[slice]]]:
    """Return the crop boxes of each real study."""
    found = []
    for number in range(templates):
        record = store.record(big_bucket.presented_uid(number))
        boxes = [
            [slice(*axis) for axis in np.reshape(entry.box, (3, 2))]
            for entry in record.vertebrae
            if entry.level in COMPETITION.levels and entry.box
        ]
        found.append(boxes)
    return found


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--fraction", type=float, default=1.0, help="fraction of the 2,019 studies")
    parser.add_argument(
        "--quick", action="store_true", help="use a few small studies; takes a minute"
    )
    parser.add_argument("--workers", type=int, default=available_cores())
    parser.add_argument("--store", help="keep all output in this folder")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    here = str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])
    os.environ["DASK_DISTRIBUTED__WORKER__PRELOAD"] = "big_bucket"
    templates, size = (2, 256) if options.quick else (4, 512)
    fraction = 4 / STUDIES if options.quick else options.fraction
    with tempfile.TemporaryDirectory() as root:
        folder, counts = Path(root) / "bucket", Path(root) / "counts"
        folder.mkdir()
        counts.mkdir()
        os.environ[big_bucket.COUNTS] = str(counts)
        slices = make_bucket(folder, templates, fraction, size)
        bucket = f"bigbucket://{folder}"
        store = options.store or f"lightstore://{root}/store"
        listed = json.loads((folder / "bucket.json").read_text())["slices"]
        first = f"lightstore://{root}/first"
        preprocess(bucket, first, options.workers, "--limit", str(templates))
        boxes = boxes_of(StudyStore.open(first), templates)
        bare = BareLoop(bucket, listed, boxes, options.workers)
        bare.take_turn()
        before = big_bucket.counted()
        summary, seconds, peak = preprocess(bucket, store, options.workers, beside=bare)
        requests = big_bucket.counted() - before
        bare.take_turn()
        bare.close()
        again, resume, _ = preprocess(bucket, store, options.workers)
        assert again["unchanged"] == summary["committed"] == again["listed"], again
        make_empty_bucket(Path(root) / "empty")
        empty, around, _ = preprocess(
            f"bigbucket://{root}/empty", f"{root}/empty-store", options.workers, masks=False
        )
        assert empty["quarantined"] == STUDIES, empty
    rows, claims = _tell(summary, seconds, peak, requests, bare, slices)
    rows += [
        {"what": f"resume over {summary['committed']:,} finished studies, s", "value": resume},
        {"what": f"{STUDIES:,} empty studies planned and executed, s", "value": around},
    ]
    report(describe_machine(PACKAGES), rows, claims, options.json)


def _tell(
    summary: dict[str, Any],
    seconds: float,
    peak: PeakMemory,
    requests: dict[str, int],
    bare: BareLoop,
    slices: int,
) -> tuple[list[dict[str, Any]], list[Claim]]:
    studies = summary["committed"]
    bare_seconds = float(np.mean(bare.turns)) * studies
    rows = [
        {"what": name, "value": value}
        for name, value in {
            "studies": studies,
            "slices": summary["slices"],
            "vertebrae": summary["crops"],
            "wall time, s": seconds,
            "bare loop over the same bytes, s": bare_seconds,
            "turns of the bare loop": len(bare.turns),
            "slices per second": summary["slices"] / seconds,
            "GB in": summary["bytes_in"] / 1e9,
            "GB out": summary["bytes_out"] / 1e9,
            "GB out of the bare loop": bare.bytes_out * studies / 1e9,
            "GET of slices": requests["get"],
            "GET of masks": requests["mask"],
            "LIST": requests["list"],
            "PUT": requests["put"],
            "peak of client and scheduler, GiB": peak.first,
            "peak of a worker, GiB": peak.others,
        }.items()
    ]
    claims = [
        Claim("GET per slice", requests["get"] / slices, 1.0, "lower"),
        Claim("above bare loop", seconds / bare_seconds, 1.3, "lower"),
        Claim("worker peak GiB", peak.others, 1.5, "lower"),
        Claim("scheduler peak GiB", peak.first, 2.0, "lower"),
        Claim("slices per second", summary["slices"] / seconds, 250.0),
        Claim("PUT per vertebra", requests["put"] / summary["crops"], 8.0, "lower"),
    ]
    return rows, claims


if __name__ == "__main__":
    main()
