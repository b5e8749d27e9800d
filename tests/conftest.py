"""Fixtures of all tests."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

REPOSITORY = Path(__file__).resolve().parent.parent

# Tiny models on shared cores take ten times as long with several threads. This must be set before
# any library counts the cores; child processes inherit it.
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session")
def realdata() -> Path:
    """Folder of real DICOM files, which are not part of the repository."""
    root = Path(os.environ.get("CSPINE_REALDATA", REPOSITORY.parent / "shared" / "realdata"))
    if not (root / "expected.json").is_file():
        pytest.skip(f"no real DICOM at {root}; set CSPINE_REALDATA")
    return root


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Browser for the tests of a module; one per session would block other event loops."""
    path = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
    if path is None:
        missing = "no chromium on this machine; .ci/run says how to install it"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    with sync_playwright() as playwright:
        # Only our own pages are opened, and containers have no sandbox.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
