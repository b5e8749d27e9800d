"""Sources and stores on S3, over HTTP, with a server whose failures the tests control."""

import io
import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.cli import main
from storage_schemas.objects import ObjectFolder, RetryPolicy
from storage_schemas.store import StudyStore
from tests.s3 import ACCESS_KEY, SECRET_KEY, S3Server, serve_s3
from tests.studies import SLICES, write_cohort

QUICK = RetryPolicy(attempts=4, first_wait_s=0.01, longest_wait_s=0.05)


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with serve_s3(monkeypatch) as server:
        yield server


def upload(server: S3Server, root: Path, prefix: str) -> None:
    folder = ObjectFolder(server.url(prefix))
    folder.put_all(
        {
            str(path.relative_to(root)): path.read_bytes()
            for path in root.rglob("*")
            if path.is_file()
        }
    )
    server.counts.clear()


def test_a_bucket_gives_the_same_store_as_a_folder(s3: S3Server, tmp_path: Path) -> None:
    source, masks = write_cohort(tmp_path, studies=2)
    upload(s3, source, "in")
    upload(s3, masks, "masks")
    arguments = ["run", s3.url("in"), s3.url("out"), "--masks", s3.url("masks")]
    assert main([*arguments, "--workers", "1"]) == 0
    assert main(["run", str(source), str(tmp_path / "out"), "--masks", str(masks), "--serial"]) == 0
    remote, local = StudyStore.open(s3.url("out")), StudyStore.open(str(tmp_path / "out"))
    for ours, theirs in zip(remote.records(), local.records(), strict=True):
        assert ours.arrays == theirs.arrays
        assert remote.check(ours) == []
    assert main([*arguments, "--serial"]) == 0
    assert main(["verify", s3.url("out")]) == 0


def test_each_slice_takes_one_get_request(s3: S3Server, tmp_path: Path) -> None:
    source, masks = write_cohort(tmp_path, studies=2)
    upload(s3, source, "in")
    upload(s3, masks, "masks")
    store = str(tmp_path / "out")
    assert main(["run", s3.url("in"), store, "--masks", s3.url("masks"), "--serial"]) == 0
    slices, mask_files = 2 * SLICES, 2
    listings = s3.counts["GET"] - slices - mask_files
    # Finding the layout, and listing the source and the masks: however many slices there are.
    assert 2 <= listings <= 9


@pytest.mark.parametrize("status", ["503 Slow Down", "500 Internal Server Error", "reset", "stall"])
def test_transient_faults_are_retried_and_counted(s3: S3Server, status: str) -> None:
    folder = ObjectFolder(s3.url("x"), QUICK)
    folder.put("key", b"voxels")
    lock, left = threading.Lock(), [2]

    def burst(method: str, path: str) -> str | None:
        with lock:
            left[0] -= 1
            return status if left[0] >= 0 else None

    s3.counts.clear()
    s3.fault = burst
    assert folder.get("key") == b"voxels"
    assert s3.counts == {"GET": 3}
    # The HTTP client itself retries once after a reused connection was closed.
    assert folder.counts.retries == (2 if status[0] == "5" else 1)


def test_a_permanent_fault_ends_after_the_last_attempt_with_its_key(s3: S3Server) -> None:
    folder = ObjectFolder(s3.url("x"), QUICK)
    folder.put("some/key", b"voxels")
    s3.fault = lambda method, path: "503 Slow Down"
    s3.counts.clear()
    with pytest.raises(OSError, match="4 attempts") as caught:
        folder.get("some/key")
    assert caught.value.filename == "some/key"
    assert s3.counts["GET"] == 4


@pytest.mark.parametrize("status", ["403 Forbidden", None])
def test_errors_that_are_not_transient_are_not_retried(s3: S3Server, status: str | None) -> None:
    folder = ObjectFolder(s3.url("x"), QUICK)
    s3.counts.clear()
    s3.fault = lambda method, path: status
    with pytest.raises((PermissionError, FileNotFoundError)):
        folder.get("none")
    assert s3.counts["GET"] == 1
    assert folder.counts.retries == 0


def test_a_lost_response_to_a_put_leaves_the_object_intact(s3: S3Server) -> None:
    """The object was written but the response lost: writing the same bytes again is harmless."""
    folder = ObjectFolder(s3.url("x"), QUICK)
    failed = []

    def lose_first(method: str, path: str) -> str | None:
        if method == "PUT" and not failed:
            failed.append(path)
            return "reset"
        return None

    s3.counts.clear()
    s3.fault = lose_first
    folder.put("key", b"voxels" * 1000)
    assert folder.get("key") == b"voxels" * 1000
    assert s3.counts["PUT"] == 2


def test_a_forbidden_slice_makes_its_study_fail_with_the_key(
    s3: S3Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, _ = write_cohort(tmp_path, studies=2)
    upload(s3, source, "in")
    s3.fault = lambda method, path: "403 Forbidden" if path.endswith("/1.2.1/7.dcm") else None
    store = str(tmp_path / "out")
    assert main(["run", s3.url("in"), store, "--serial", "--json"]) == 3
    output = capsys.readouterr()
    summary = json.loads(output.out)
    assert (summary["committed"], summary["failed"]) == (1, 1)
    assert s3.url("in/1.2.1/7.dcm") in output.err
    assert "object-unreadable" in output.err
    s3.fault = lambda method, path: None
    assert main(["run", s3.url("in"), store, "--serial"]) == 0


def test_a_run_with_transient_faults_is_complete(s3: S3Server, tmp_path: Path) -> None:
    source, masks = write_cohort(tmp_path, studies=2)
    upload(s3, source, "in")
    random = np.random.default_rng(4)
    lock = threading.Lock()

    def sometimes(method: str, path: str) -> str | None:
        with lock:
            draw = random.random()
        return "503 Slow Down" if draw < 0.06 else "reset" if draw < 0.1 else None

    s3.fault = sometimes
    code = main(["run", s3.url("in"), s3.url("out"), "--masks", str(masks), "--serial"])
    s3.fault = lambda method, path: None
    assert code == 0
    assert main(["verify", s3.url("out")]) == 0


def test_no_record_table_or_log_has_a_credential(
    s3: S3Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, masks = write_cohort(tmp_path, studies=1)
    upload(s3, source, "in")
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    ours = [logging.getLogger(name) for name in ("pipeline", "storage_schemas", "distributed")]
    root.setLevel(logging.DEBUG)
    try:
        arguments = ["--masks", str(masks), "--workers", "1"]
        assert main(["run", s3.url("in"), str(tmp_path / "out"), *arguments]) == 0
        s3.fault = lambda method, path: "403 Forbidden"
        main(["run", s3.url("in"), str(tmp_path / "other"), "--serial"])
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    assert ours
    output = capsys.readouterr()
    everything = [output.out, output.err, stream.getvalue()]
    everything += [
        path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()
    ]
    for text in everything:
        assert SECRET_KEY not in text
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            assert ACCESS_KEY.encode() not in path.read_bytes()


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("run s3://bucket/x {tmp}/s", "source-not-found"),
        ("run {tmp} s3://bucket/x", "store-unwritable"),
        ("verify s3://bucket/x", "store-not-found"),
    ],
)
def test_missing_credentials_are_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    line: str,
    kind: str,
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    (tmp_path / "1.2").mkdir()
    (tmp_path / "1.2" / "x.dcm").write_text("no DICOM")
    assert main(line.format(tmp=tmp_path).split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "NoCredentialsError" in line
    assert f"[{kind}]" in line
