"""Peak memory of a worker for one study, measured from outside."""

import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.studies import slice_dataset

SLICES, SIDE = 700, 512
PEAK_BYTES = int(1.5 * 2**30)

RUN = """
import pathlib, re, sys
from pipeline.cli import main
code = main(["run", sys.argv[1], sys.argv[2], "--serial"])
# Not ru_maxrss, which includes the memory of the parent process.
status = pathlib.Path("/proc/self/status").read_text()
print(code, 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]))
"""


def test_a_study_of_700_slices_stays_within_the_budget_of_a_worker(tmp_path: Path) -> None:
    folder = tmp_path / "source" / "1.2.3"
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(-1000, 1500, (8, SIDE, SIDE)).astype(np.int16)
    for z in range(SLICES):
        slice_dataset("1.2.3", z, noise[z % 8]).save_as(
            folder / f"{z + 1}.dcm", enforce_file_format=True
        )
    result = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path / "source"), str(tmp_path / "s")],
        capture_output=True,
        text=True,
        check=True,
    )
    code, peak = map(int, result.stdout.split()[-2:])
    assert code == 0
    assert peak < PEAK_BYTES, f"{peak / 2**30:.2f} GiB"
