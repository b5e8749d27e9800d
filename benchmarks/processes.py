"""Memory of a command and its child processes as reported by Linux, and pausing them."""

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

GIB = 1 << 30


class PeakMemory:
    """Peak memory of a command's processes, the first one separately from its workers.

    Parameters
    ----------
    pid : int
        Process id of the command.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._peaks: dict[int, int] = {}

    def record(self) -> None:
        """Record the peaks so far, as reported by the kernel."""
        for pid in _family(self._pid):
            try:
                status = Path(f"/proc/{pid}/status").read_text()
            except OSError:
                continue
            for line in status.splitlines():
                if line.startswith("VmHWM:"):
                    self._peaks[pid] = max(self._peaks.get(pid, 0), int(line.split()[1]) << 10)

    @property
    def first(self) -> float:
        """GiB of the command itself: client and scheduler."""
        return self._peaks.get(self._pid, 0) / GIB

    @property
    def others(self) -> float:
        """GiB of its largest child process."""
        return max((peak for pid, peak in self._peaks.items() if pid != self._pid), default=0) / GIB


def _family(pid: int) -> Iterator[int]:
    yield pid
    for threads in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = threads.read_text().split()
        except OSError:
            continue
        for child in children:
            yield from _family(int(child))


@contextmanager
def halted(pid: int) -> Iterator[None]:
    """Halt a process and its children within the block."""
    family = list(_family(pid))
    for one in family:
        os.kill(one, signal.SIGSTOP)
    try:
        yield
    finally:
        for one in reversed(family):
            os.kill(one, signal.SIGCONT)


@contextmanager
def watched(process: subprocess.Popen[str]) -> Iterator[PeakMemory]:
    """Record a process's memory twice a second while it runs."""
    peak, over = PeakMemory(process.pid), threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            peak.record()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()
