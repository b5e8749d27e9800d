"""Milliseconds per header: our reader of selected elements and pydicom.

    python benchmarks/headers.py [--quick] [--json FILE] [--realdata FOLDER]

All readers get the same objects as bytes in memory, taking turns for several rounds, and the best
round of each counts. Each must return the stored bytes of every element that the pipeline reads
(`pipeline.dicom.elements.SPECIFIC`) and that pydicom's full header holds.
"""

import argparse
import io
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pydicom
from claims import Claim, describe_machine, report
from decode import REAL, make_grid, make_stack, write_series

from pipeline.dicom.elements import SPECIFIC, read_elements
from pipeline.dicom.limits import Limits

Values = dict[str, bytes]
TAGS = list(SPECIFIC.values())
LIMITS = Limits()
MOST_FILES = 100


def ours(data: bytes) -> Values:
    """Read with our reader; return the raw bytes by element name."""
    return read_elements("", data, LIMITS).values


def pydicom_whole(data: bytes) -> Values:
    """Read with pydicom, up to the pixel data."""
    return _raw(pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True))


def pydicom_specific(data: bytes) -> Values:
    """Read with pydicom, the same elements only."""
    stream = io.BytesIO(data)
    return _raw(pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=TAGS))


def _raw(dataset: pydicom.Dataset) -> Values:
    """Return the stored bytes, which pydicom converts only when a value is requested."""
    return {name: dataset.get_item(tag).value for name, tag in SPECIFIC.items() if tag in dataset}


OURS = "this pipeline"
CONTESTANTS: dict[str, Callable[[bytes], Values]] = {
    OURS: ours,
    "pydicom, these elements": pydicom_specific,
    "pydicom, whole header": pydicom_whole,
}


def race(objects: Sequence[bytes], rounds: int) -> dict[str, float]:
    """Return milliseconds per object of each reader, the best of several rounds."""
    best = dict.fromkeys(CONTESTANTS, float("inf"))
    for _ in range(rounds):
        for name, read in CONTESTANTS.items():
            start = time.perf_counter()
            for data in objects:
                read(data)
            best[name] = min(best[name], 1e3 * (time.perf_counter() - start) / len(objects))
    return best


def enter(rows: list[dict[str, Any]], series: str, objects: Sequence[bytes], rounds: int) -> float:
    """Compare the readers on one series and add its rows; return the speed-up over pydicom."""
    # Empty elements excluded: for an empty SOPClassUID the pipeline reads the file meta's.
    truth = [{k: v for k, v in pydicom_whole(data).items() if v} for data in objects]
    best = race(objects, rounds)
    for name, read in CONTESTANTS.items():
        exact = all(t.items() <= read(data).items() for t, data in zip(truth, objects, strict=True))
        rows.append(
            {
                "series": series,
                "headers": len(objects),
                "reader": name,
                "ms/header": f"{best[name]:.4f}",
                "speed-up": best[name] / best[OURS],
                "values": "exact" if exact else "other values",
            }
        )
    return min(value for name, value in best.items() if name != OURS) / best[OURS]


def main() -> None:
    """Run the comparison and report."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="use fewer rounds, with less precise values"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    default = Path(__file__).resolve().parents[2] / "shared" / "realdata"
    parser.add_argument("--realdata", type=Path, default=default, help="folder of real series")
    options = parser.parse_args()
    rounds = 5 if options.quick else 30
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as root:
        grid = make_grid(24)
        write_series(Path(root) / "series", make_stack(grid), grid, "raw")
        folders = {"phantom": Path(root) / "series"}
        if options.realdata.is_dir():
            folders |= {name: options.realdata / path for name, path in REAL.items()}
        leads = []
        for name, folder in folders.items():
            files = sorted(path for path in folder.iterdir() if path.is_file())[:MOST_FILES]
            leads.append(enter(rows, name, [path.read_bytes() for path in files], rounds))
    claims = [Claim("headers vs the faster of pydicom, worst series", min(leads), 5.0)]
    report(describe_machine(["pydicom"]), rows, claims, options.json)


if __name__ == "__main__":
    main()
