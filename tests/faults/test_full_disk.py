"""A local disk that fills up in the middle of a run."""

import subprocess
from pathlib import Path

import pytest

from pipeline.cli import main
from storage_schemas.store import StudyStore
from tests.studies import write_cohort


def test_a_full_disk_is_one_line_and_the_run_continues_on_a_larger_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, masks = write_cohort(tmp_path, studies=4)
    assert (
        main(["run", str(source), str(tmp_path / "reference"), "--masks", str(masks), "--serial"])
        == 0
    )
    size = sum(p.stat().st_size for p in (tmp_path / "reference").rglob("*") if p.is_file())
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size // 2}", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no small disk can be mounted here")
    try:
        capsys.readouterr()
        command = ["run", str(source), str(disk / "store"), "--masks", str(masks), "--serial"]
        assert main([*command, "--json"]) == 3
        output = capsys.readouterr()
        assert "No space left on device" in output.err
        assert "Traceback" not in output.err
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        assert main(command) == 0
        store = StudyStore.open(str(disk / "store"))
        assert len(store.studies()) == 4
        assert all(store.check(record) == [] for record in store.records())
        assert not list((disk / "store").rglob("*.partial"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)
