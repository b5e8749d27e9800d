"""Tasks that end or hang their worker on chosen studies; importable by workers."""

import os
import signal
import time
from dataclasses import dataclass

from pipeline.run import StudyTask
from pipeline.source.listing import StudyListing
from pipeline.study import StudyRow

KILLER, HANGER = "1.2.1", "1.2.2"


@dataclass(frozen=True)
class HostileTask(StudyTask):
    """Processes a study, or ends or hangs the worker if the study is one of the chosen ones."""

    def __call__(self, listing: StudyListing) -> StudyRow:
        if listing.study == KILLER:
            os.kill(os.getpid(), signal.SIGKILL)
        if listing.study == HANGER:
            time.sleep(3600)
        return super().__call__(listing)
