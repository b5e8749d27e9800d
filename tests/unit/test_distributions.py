"""What the sdist and the wheel hold, built from a copy of the files that git would commit."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

MADE = ("docs/api/generated/page.rst", "tests/__pycache__/test.cpython-311.pyc")
"""Files that lie in a checkout after a build or a test, and must not be distributed."""
PACKAGES = ("pipeline", "training", "presentation", "storage_schemas")
BUILD = (
    "import sys; from setuptools import build_meta as build; out = sys.argv[1]; "
    "build.build_sdist(out); build.build_wheel(out)"
)


def source_files() -> set[str]:
    """Files of the repository, tracked or new, as paths relative to it; not the ignored ones."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=False, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git checkout, so what belongs to the project is not known")
    return {name for name in listed.stdout.split("\0") if (REPOSITORY / name).is_file()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an sdist and a wheel.

    They are built without isolation, so that nothing is fetched, and from a copy, because an old
    list of sources in the checkout would hide a file that MANIFEST.in misses.
    """
    root = tmp_path_factory.mktemp("distributions")
    for name in source_files():
        copy = root / "source" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, copy)
    for name in MADE:
        copy = root / "source" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.touch()
    out = root / "dist"
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BUILD, str(out)],
        cwd=root / "source",
        check=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": ""},
    )
    return out


@pytest.fixture(scope="module")
def sdist(built: Path) -> set[str]:
    (file,) = built.glob("*.tar.gz")
    with tarfile.open(file) as archive:
        names = [member.name.partition("/")[2] for member in archive if member.isfile()]
    return set(names)


@pytest.fixture(scope="module")
def wheel(built: Path) -> set[str]:
    (file,) = built.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        return set(archive.namelist())


def test_the_sdist_holds_every_file_of_the_project(sdist: set[str]) -> None:
    assert source_files() - sdist == set()


def test_the_sdist_holds_what_builds_tests_and_documents_need(sdist: set[str]) -> None:
    needed = ("Makefile", "constraints.txt", ".ci/run", "docs/conf.py", "benchmarks/decode.py")
    assert set(needed) <= sdist
    assert "tests/unit/test_distributions.py" in sdist


def test_the_sdist_holds_nothing_that_was_made(sdist: set[str]) -> None:
    assert sdist & set(MADE) == set()


def test_the_wheel_holds_every_module_template_and_type_marker(wheel: set[str]) -> None:
    expected = {
        name for name in source_files() if name.startswith(tuple(f"{p}/" for p in PACKAGES))
    }
    templates = {name for name in expected if "/templates/" in name}
    folders = {Path(name).parent.as_posix() for name in templates}
    assert {"pipeline/report/templates", "training/rounds/templates"} <= folders
    assert expected - wheel == set()


def test_the_wheel_holds_no_tests_and_no_documents(wheel: set[str]) -> None:
    assert {name.split("/")[0] for name in wheel if ".dist-info/" not in name} == set(PACKAGES)
