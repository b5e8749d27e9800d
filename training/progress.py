"""How training speaks: a live line on a terminal, one JSON line an event otherwise.

Everything here goes to standard error; standard output holds only results. Of several ranks the
first one speaks for all.
"""

import json
import sys
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from training.ranks import is_first


class StageProgress:
    """The progress of one stage over a known number of items, as a context manager.

    Parameters
    ----------
    stage : str
        What is going on, e.g. ``train round 1``.
    total : int
        Items.
    unit : str
        What an item is, e.g. ``steps``.
    """

    def __init__(self, stage: str, total: int, unit: str) -> None:
        self._stage = stage
        self._total = total
        self._unit = unit
        self._done = 0
        self._live: Progress | None = None

    def __enter__(self) -> "StageProgress":
        self._started = time.monotonic()
        if sys.stderr.isatty() and is_first():
            self._live = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn(f"{self._unit} {{task.fields[note]}}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._live.add_task(self._stage, total=self._total, note="")
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._live:
            self._live.stop()
            self._live = None

    def advance(self) -> None:
        """Count one item, on a terminal only."""
        self._done += 1
        if self._live:
            self._live.update(self._task, completed=self._done)

    def reach(self, done: int, total: int, note: str, **event: Any) -> None:
        """Say how many items are done; `note` is for a terminal, `event` for a JSON line."""
        if self._live:
            self._live.update(self._task, completed=done, total=total, note=note)
        else:
            say_event(self._stage, done=done, total=total, **event)

    def finish(self) -> None:
        """Say that all items are done, and end the live line."""
        if not self._live:
            seconds = round(time.monotonic() - self._started, 3)
            say_event(self._stage, done=self._done, unit=self._unit, seconds=seconds)
        self._stop()


def say_event(stage: str, **event: Any) -> None:
    """Print one event: a line of its own on a terminal, a JSON line otherwise."""
    if not is_first():
        return
    if sys.stderr.isatty():
        told = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in event.items())
        print(f"{stage}: {told}", file=sys.stderr, flush=True)
    else:
        print(json.dumps({"stage": stage, **event}), file=sys.stderr, flush=True)
