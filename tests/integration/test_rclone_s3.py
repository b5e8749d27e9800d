"""Preprocessing on a real S3 server gives the same store as on a disk."""

import json
from pathlib import Path

import pytest

from pipeline.cli import main
from storage_schemas.store import StudyStore
from tests.rclone import serve_folder
from tests.studies import write_cohort


def test_a_run_on_a_real_server_equals_one_on_disk_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    buckets = tmp_path / "buckets"
    source, masks = write_cohort(buckets / "ct", studies=2)
    (buckets / "out").mkdir()
    local = tmp_path / "local"
    assert main(["run", str(source), str(local), "--masks", str(masks), "--serial"]) == 0
    with serve_folder(buckets, monkeypatch):
        places = [f"s3://ct/{source.name}", "s3://out/store", "--masks", f"s3://ct/{masks.name}"]
        assert main(["run", *places, "--workers", "2"]) == 0
        remote = StudyStore.open("s3://out/store")
        for ours, theirs in zip(
            remote.records(), StudyStore.open(str(local)).records(), strict=True
        ):
            assert ours.arrays == theirs.arrays
            assert remote.check(ours) == []
        capsys.readouterr()
        assert main(["run", *places, "--serial", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["unchanged"] == 2
        assert main(["verify", "s3://out/store", "--source", f"s3://ct/{source.name}"]) == 0
