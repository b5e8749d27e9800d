"""A real S3 server on loopback: rclone, which serves a local folder as buckets."""

import socket
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import pytest

# rclone refuses shorter keys.
ACCESS_KEY = "canary-access-key-0123456789"
SECRET_KEY = "canary-secret-key-0123456789-abcdefghij"
START_SECONDS = 20


@contextmanager
def serve_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Serve a folder, its subfolders as buckets, with the environment that clients need."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [
            *(Path(sysconfig.get_path("scripts")) / "rclone", "serve", "s3", folder),
            *("--addr", f"127.0.0.1:{port}", "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}"),
            *("--config", "/dev/null", "--log-level", "ERROR"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for name, value in {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{port}",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
    }.items():
        monkeypatch.setenv(name, value)
    filesystem = fsspec.get_filesystem_class("s3")
    filesystem.clear_instance_cache()
    try:
        _wait_for(port, server)
        yield
    finally:
        filesystem.clear_instance_cache()
        server.terminate()
        server.wait()


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    for _ in range(START_SECONDS * 10):
        assert server.poll() is None, "rclone ended"
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise TimeoutError("rclone does not answer")
