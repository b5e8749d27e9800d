"""How commands speak: a live line on a terminal, one JSON line an event otherwise.

Everything here goes to standard error; standard output holds only results. Of several processes
that work as one, as ``torchrun`` starts them, the first one speaks for all.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

_UNBOUNDED = 1_000
"""Columns of output that is no terminal."""


class StageProgress:
    """The progress of one stage over a known number of items, as a context manager.

    Parameters
    ----------
    stage : str
        What is going on, e.g. ``run``.
    total : int
        Items.
    unit : str
        What an item is, e.g. ``studies``.
    """

    def __init__(self, stage: str, total: int, unit: str) -> None:
        self._stage = stage
        self._total = total
        self._unit = unit
        self._done = 0
        self._started = time.monotonic()
        self._live: Progress | None = None
        if sys.stderr.isatty() and _speaks():
            self._live = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn(f"{unit} {{task.fields[note]}}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._live.add_task(stage, total=total, note="")

    def __enter__(self) -> "StageProgress":
        if self._live:
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

    def advance(self, note: str = "", lines: Sequence[str] = (), **event: Any) -> None:
        """Count one item.

        Parameters
        ----------
        note : str
            For the terminal's live line.
        lines : sequence of str
            What deserves lines of its own on a terminal.
        **event
            For the JSON line, which says all of that; items of which nothing is said have none.
        """
        self._done += 1
        if self._live:
            for line in lines:
                self._live.console.print(line, markup=False, highlight=False, soft_wrap=True)
            self._live.update(self._task, completed=self._done, note=note)
        elif event:
            self._say(done=self._done, total=self._total, **event)

    def reach(self, done: int, total: int, note: str = "", **event: Any) -> None:
        """Say how many items are done; `note` is for a terminal, `event` for a JSON line."""
        self._done = done
        if self._live:
            self._live.update(self._task, completed=done, total=total, note=note)
        else:
            self._say(done=done, total=total, **event)

    def finish(self) -> None:
        """Say that all items are done, and end the live line."""
        if not self._live:
            self._say(done=self._done, unit=self._unit)
        self._stop()

    def _say(self, **event: Any) -> None:
        say_event(self._stage, seconds=round(time.monotonic() - self._started, 3), **event)


def say_event(stage: str, **event: Any) -> None:
    """Print an event to standard error: words on a terminal, else one JSON line."""
    if not _speaks():
        return
    if sys.stderr.isatty():
        words = (f"{name.replace('_', ' ')} {_in_words(value)}" for name, value in event.items())
        line = f"{stage}: {', '.join(words)}"
        Console(stderr=True).print(line, markup=False, highlight=False, soft_wrap=True)
    else:
        print(json.dumps({"stage": stage, **event}), file=sys.stderr, flush=True)


def _speaks() -> bool:
    return os.environ.get("RANK", "0") == "0"


def show_table(title: str, rows: Sequence[tuple[str, object]]) -> None:
    """Print a table of two columns to standard output."""
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in rows:
        table.add_row(name.replace("_", " "), escape(_in_words(value)))
    result_console().print(table)


def result_console() -> Console:
    """Standard output; a file or a pipe has no width to keep within."""
    return Console(width=None if sys.stdout.isatty() else _UNBOUNDED)


def _in_words(value: object) -> str:
    """A value for people: numbers with commas, lists by items."""
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return "; ".join(map(str, value)) or "none"
    return str(value)
