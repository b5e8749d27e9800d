"""The log of one run: when each study ended, how long it took, what it moved."""

import json
import time
from dataclasses import asdict
from datetime import UTC, datetime

from pipeline.run import RunSummary
from pipeline.study import StudyRow


class RunLog:
    """Lines of a run's log, in the order in which studies ended."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self.name = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        self.lines: list[str] = []

    def add(self, row: StudyRow) -> None:
        """Note a study that has ended."""
        at = round(time.monotonic() - self._started, 3)
        times = {"seconds": row.seconds, "locate_seconds": row.locate_seconds}
        rounded = {name: round(seconds, 3) for name, seconds in times.items()}
        entry = asdict(row) | rounded | {"at_seconds": at}
        self.lines.append(json.dumps(entry))

    def rates(self, summary: RunSummary) -> str:
        """Slices and megabytes a second since the start, for people."""
        seconds = max(time.monotonic() - self._started, 1e-3)
        slices, megabytes = summary.slices / seconds, summary.bytes_in / 1e6 / seconds
        return f"{slices:.0f} slices/s, {megabytes:.1f} MB/s"
