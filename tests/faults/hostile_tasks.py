"""Tasks that end or hang their worker on chosen studies; importable by workers."""

import os
import signal
import time

from pipeline.config import StudyConfig
from pipeline.source.listing import StudyListing
from pipeline.study import StudyRow, run_study

KILLER, HANGER = "1.2.1", "1.2.2"


def hostile(listing: StudyListing, store_url: str) -> StudyRow:
    """Process a study, or end or hang the worker if the study is one of the chosen ones."""
    if listing.study == KILLER:
        os.kill(os.getpid(), signal.SIGKILL)
    if listing.study == HANGER:
        time.sleep(3600)
    return run_study(listing, StudyConfig(), store_url, 1)
