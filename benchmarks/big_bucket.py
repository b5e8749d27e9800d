"""A bucket that presents 2,019 studies from a few real ones, and a store that keeps no payload.

Two fsspec file systems. ``bigbucket`` presents a few real studies repeatedly, each time under
different UIDs: every read opens a file and replaces the UID in its bytes. ``lightstore`` is a local
folder in which shards are kept as their length and checksum. Both count requests in files, because
worker processes end before they could be asked. Dask workers load the file systems by preloading
this module.
"""

import json
import os
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import fsspec
import google_crc32c
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

COUNTS = "CSPINE_BENCH_COUNTS"
"""Environment variable with the folder of the counter files."""
UID_ROOT = "1.2.826.0.1.3680043.8.498"
SOURCE, MASKS = "studies", "masks"


def template_uid(number: int) -> str:
    """StudyInstanceUID of a real study, of the same length as the presented ones."""
    return f"{UID_ROOT}.9{number:09d}"


def presented_uid(number: int) -> str:
    """StudyInstanceUID of a presented study."""
    return f"{UID_ROOT}.8{number:09d}"


def count(kind: str) -> None:
    """Count one request, by appending a byte to the process's counter file."""
    os.write(_counter(f"{os.environ[COUNTS]}/{kind}-{os.getpid()}"), b".")


@cache
def _counter(path: str) -> int:
    # Kept open: opening it for each request would take longer than parsing the headers.
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def counted() -> Counter[str]:
    """Return the requests of all processes so far, by kind."""
    totals: Counter[str] = Counter()
    for path in Path(os.environ[COUNTS]).iterdir():
        totals[path.name.partition("-")[0]] += path.stat().st_size
    return totals


class BigBucket(AbstractFileSystem):
    """``bigbucket://<folder>/studies/<uid>/<number>.dcm`` and ``.../masks/<uid>.nii.gz``.

    The folder holds ``<template>/<number>.dcm``, ``<template>.nii.gz`` and ``bucket.json``, which
    lists the number of slices of each presented study.
    """

    protocol = "bigbucket"
    cachable = True

    def _split(self, path: str) -> tuple[str, str, str]:
        """Split a path into folder, kind (or "") and rest."""
        path = self._strip_protocol(path)
        for kind in (SOURCE, MASKS):
            head, found, rest = f"{path}/".partition(f"/{kind}/")
            if found:
                return head, kind, rest.strip("/")
        return path, "", ""

    def _bucket(self, folder: str) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((Path(folder) / "bucket.json").read_text())
        return document

    def find(self, path: str, *args: Any, **kwargs: Any) -> dict[str, dict[str, Any]]:
        """List all objects below a folder: one request."""
        count("list")
        folder, kind, rest = self._split(path)
        bucket = self._bucket(folder)
        sizes, masks = bucket["sizes"], bucket["masks"]
        found = {}
        for number, slices in enumerate(bucket["slices"]):
            study, template = presented_uid(number), number % len(sizes)
            if not study.startswith(rest.partition("/")[0]):
                continue
            base = f"{folder}/{kind}/{study}"
            if kind == MASKS:
                found[f"{base}.nii.gz"] = self._entry(f"{base}.nii.gz", masks[template])
            else:
                for z in range(slices):
                    found[f"{base}/{z}.dcm"] = self._entry(f"{base}/{z}.dcm", sizes[template][z])
        return found

    @staticmethod
    def _entry(name: str, size: int) -> dict[str, Any]:
        return {"name": name, "size": size, "type": "file", "ETag": "1"}

    def isdir(self, path: str) -> bool:
        """Return whether a folder exists."""
        folder, kind, rest = self._split(path)
        return bool(kind) and not rest and (Path(folder) / "bucket.json").is_file()

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any
    ) -> bytes:
        """Read an object: one request."""
        folder, kind, rest = self._split(path)
        study, _, name = rest.removesuffix(".nii.gz").partition("/")
        number = int(study.rpartition(".")[2][1:])
        template = template_uid(number % len(self._templates(folder)))
        if kind == MASKS:
            count("mask")
            return (Path(folder) / f"{template}.nii.gz").read_bytes()[start:end]
        count("get")
        data = (Path(folder) / template / name).read_bytes()
        return data.replace(template.encode(), study.encode())[start:end]

    def _templates(self, folder: str) -> list[Any]:
        if not hasattr(self, "_sizes"):
            self._sizes: list[Any] = self._bucket(folder)["sizes"]
        return self._sizes


class LightStore(LocalFileSystem):
    """A local folder that keeps only length and checksum of each shard."""

    protocol = "lightstore"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(LocalFileSystem._strip_protocol(path.removeprefix("lightstore://")))

    def unstrip_protocol(self, name: str) -> str:
        """Return the URL of a path."""
        return f"lightstore://{self._strip_protocol(name)}"

    def pipe_file(self, path: str, value: bytes, **kwargs: Any) -> None:
        """Write an object: one request."""
        count("put")
        if path.endswith("/c/0/0/0"):
            kept = {"bytes": len(value), "crc32c": google_crc32c.value(value)}
            value = json.dumps(kept).encode()
        target = Path(self._strip_protocol(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(value)


fsspec.register_implementation("bigbucket", BigBucket, clobber=True)
fsspec.register_implementation("lightstore", LightStore, clobber=True)
