"""Fixtures that every room of the tests may use."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The folder of real DICOM files, which is no part of the repository."""
    root = Path(os.environ.get("CSPINE_REALDATA", REPOSITORY.parent / "shared" / "realdata"))
    if not (root / "expected.json").is_file():
        pytest.skip(f"no real DICOM at {root}; set CSPINE_REALDATA")
    return root
