"""Log of one run: end time, duration and counts of each study."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from pipeline.run import RunSummary
from pipeline.study import StudyRow
from storage_schemas.store import StudyStore

_NAME = "%Y%m%dT%H%M%S.%fZ"


class RunLog:
    """Log of a run in progress.

    Attributes
    ----------
    name : str
        Start time of the run in UTC, which names the log in the store.
    lines : list of str
        One JSON object per study, in the order in which the studies ended.
    """

    def __init__(self) -> None:
        self._started = time.monotonic()
        self.name = datetime.now(UTC).strftime(_NAME)
        self.lines: list[str] = []

    def add(self, row: StudyRow) -> None:
        """Append a study that has ended."""
        at = round(time.monotonic() - self._started, 3)
        times = {"seconds": row.seconds, "locate_seconds": row.locate_seconds}
        rounded = {name: round(seconds, 3) for name, seconds in times.items()}
        entry = asdict(row) | rounded | {"at_seconds": at}
        self.lines.append(json.dumps(entry))

    def rates(self, summary: RunSummary) -> str:
        """Format the slices and megabytes per second since the start."""
        seconds = max(time.monotonic() - self._started, 1e-3)
        slices, megabytes = summary.slices / seconds, summary.bytes_in / 1e6 / seconds
        return f"{slices:.0f} slices/s, {megabytes:.1f} MB/s"


@dataclass(frozen=True)
class LoggedRun:
    """A run, read from its log.

    Parameters
    ----------
    name : str
        Name of the log.
    started : datetime or None
        Start time in UTC; None where the name is not a time.
    rows : tuple of StudyRow
        Studies of the run, in the order in which they ended.
    ends : tuple of float
        End of each study in seconds after the start.
    unreadable : int
        Number of lines that could not be parsed.
    """

    name: str
    started: datetime | None
    rows: tuple[StudyRow, ...]
    ends: tuple[float, ...]
    unreadable: int

    @property
    def seconds(self) -> float:
        """Seconds from the start to the end of the last study, including the start of workers."""
        return max(self.ends, default=0.0)

    def outcomes(self) -> dict[str, int]:
        """Number of studies by outcome."""
        names = ("committed", "quarantined", "failed")
        return {name: sum(row.outcome == name for row in self.rows) for name in names}

    def rates(self, bins: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Slices per second over the run; the slices of a study are spread over its duration.

        Parameters
        ----------
        bins : int
            Number of time bins.

        Returns
        -------
        edges : ndarray, shape (bins + 1,), float64
            Bin edges in seconds after the start.
        rates : ndarray, shape (bins,), float64
            Slices per second in each bin.
        """
        edges = np.linspace(0, self.seconds, bins + 1)
        done = np.zeros(bins + 1)
        for row, end in zip(self.rows, self.ends, strict=True):
            share = (edges - (end - row.seconds)) / max(row.seconds, 1e-9)
            done += row.slices * share.clip(0, 1)
        return edges, np.diff(done) / np.diff(edges)


def read_runs(store: StudyStore) -> list[LoggedRun]:
    """Read the logs of all runs of a store, oldest first."""
    return [_read(name, lines) for name, lines in store.logs()]


def _read(name: str, lines: Sequence[str]) -> LoggedRun:
    rows, ends, unreadable = [], [], 0
    for line in lines:
        try:
            entry = json.loads(line)
            end = float(entry.pop("at_seconds"))
            row = StudyRow(**entry)
            row = replace(row, slices=int(row.slices), seconds=float(row.seconds))
        except (ValueError, TypeError, KeyError, AttributeError):
            unreadable += 1
            continue
        rows.append(row)
        ends.append(end)
    try:
        started = datetime.strptime(name, _NAME).replace(tzinfo=UTC)
    except ValueError:
        started = None
    return LoggedRun(name, started, tuple(rows), tuple(ends), unreadable)
