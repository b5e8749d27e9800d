"""Progress and messages of commands: a live line on a terminal, one JSON line an event otherwise.

Everything here goes to standard error; standard output holds only results. Of several processes
that work as one, as ``torchrun`` starts them, only the first one prints.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

# rich is imported where something is shown: help needs none of it, nor does a script.

_UNBOUNDED = 1_000
"""Columns of output that is not a terminal."""


class StageProgress:
    """The progress of one stage over a known number of items, as a context manager.

    Parameters
    ----------
    stage : str
        Name of the stage, e.g. ``run``.
    total : int
        Number of items.
    unit : str
        Name of an item, in the plural, e.g. ``studies``.
    """

    def __init__(self, stage: str, total: int, unit: str) -> None:
        self._stage = stage
        self._total = total
        self._unit = unit
        self._done = 0
        self._started = time.monotonic()
        self._live: Progress | None = None
        if sys.stderr.isatty() and is_first_process():
            self._live = _live_line(unit)
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
            Text for the live line of a terminal.
        lines : sequence of str
            Texts that get lines of their own on a terminal.
        **event
            Fields of the JSON line; without any, no line is printed.
        """
        self._done += 1
        if self._live:
            for line in lines:
                self._live.console.print(line, markup=False, highlight=False, soft_wrap=True)
            self._live.update(self._task, completed=self._done, note=note)
        elif event:
            self._say(done=self._done, total=self._total, **event)

    def reach(self, done: int, total: int, note: str = "", **event: Any) -> None:
        """Show how many items are done; `note` is for a terminal, `event` for a JSON line."""
        self._done = done
        if self._live:
            self._live.update(self._task, completed=done, total=total, note=note)
        else:
            self._say(done=done, total=total, **event)

    def finish(self) -> None:
        """Show that all items are done, and end the live line."""
        if not self._live:
            self._say(done=self._done, unit=self._unit)
        self._stop()

    def _say(self, **event: Any) -> None:
        say_event(self._stage, seconds=round(time.monotonic() - self._started, 3), **event)


def _live_line(unit: str) -> "Progress":
    from rich import progress
    from rich.console import Console

    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn(f"{unit} {{task.fields[note]}}"),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def say_event(stage: str, **event: Any) -> None:
    """Print an event to standard error: words on a terminal, else one JSON line."""
    if not is_first_process():
        return
    if sys.stderr.isatty():
        words = (f"{name.replace('_', ' ')} {_in_words(value)}" for name, value in event.items())
        print(f"{stage}: {', '.join(words)}", file=sys.stderr)
    else:
        print(json.dumps({"stage": stage, **event}), file=sys.stderr, flush=True)


def is_first_process() -> bool:
    """Whether this process prints, of those that ``torchrun`` started together."""
    return os.environ.get("RANK", "0") == "0"


def show_table(title: str, rows: Sequence[tuple[str, object]]) -> None:
    """Print a table of two columns to standard output."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in rows:
        table.add_row(name.replace("_", " "), escape(_in_words(value)))
    result_console().print(table)


def result_console() -> "Console":
    """Standard output; a file or a pipe has no width to keep within."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else _UNBOUNDED)


def _in_words(value: object) -> str:
    """A value for people: numbers with commas, lists by items."""
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return "; ".join(map(str, value)) or "none"
    return str(value)
