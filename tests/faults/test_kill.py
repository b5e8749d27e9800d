"""A run that is killed at random times and resumed writes the same bytes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from storage_schemas.store import StudyStore
from tests.studies import write_cohort

STUDIES = 8
MOMENTS = 20
SECONDS = 4.0
"""Approximate duration of a run, including its start, over which the kills are spread."""


def tree(root: Path) -> dict[str, bytes]:
    """Content of all files except the logs, which differ from run to run."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.parent.name not in ("logs", "lease")
    }


def start(source: Path, masks: Path, store: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", "run", str(source), str(store),
         "--masks", str(masks), "--json", *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> dict[str, int]:
    out, _ = process.communicate(timeout=120)
    summary = json.loads(out.splitlines()[-1])
    assert summary["committed"] + summary["quarantined"] + summary["failed"] == STUDIES
    return dict(summary)


@pytest.mark.timeout(600)
def test_a_run_killed_twenty_times_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    source, masks = write_cohort(tmp_path, studies=STUDIES)
    assert finish(start(source, masks, tmp_path / "reference", "--serial"))["committed"] == STUDIES
    expected = tree(tmp_path / "reference")
    store = tmp_path / "killed"
    random = np.random.default_rng(20)
    for moment in range(MOMENTS):
        process = start(source, masks, store, "--workers", "2")
        time.sleep(float(random.uniform(0.5, SECONDS)))
        if moment % 2:
            kill_a_worker(process.pid, random)
        else:
            # Kill the client and all processes of its session.
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=120)
        if store.exists() and (store / "volumes.zarr" / "zarr.json").exists():
            committed_studies_are_whole(store)
            # Every second time, remove some of the committed files.
            if moment % 2 and (records := sorted((store / "records").glob("[0-9]*.json"))):
                records[int(random.integers(len(records)))].unlink()
    assert finish(start(source, masks, store, "--workers", "2"))["failed"] == 0
    assert tree(store) == expected


def kill_a_worker(client: int, random: np.random.Generator) -> None:
    try:
        workers = [
            child
            for child in psutil.Process(client).children(recursive=True)
            if not child.children() and "spawn_main" in " ".join(child.cmdline())
        ]
        if workers:
            workers[int(random.integers(len(workers)))].kill()
    except psutil.NoSuchProcess:
        pass


def committed_studies_are_whole(root: Path) -> None:
    store = StudyStore.open(str(root))
    for study in store.studies():
        assert store.check(store.record(study)) == []
