"""One coordinator a store: a lease that is created conditionally, renewed, and taken over.

The lease is a numbered object below ``lease/`` in the store, and the highest number holds it.
Numbers only grow: a run creates the next one, which of several at once only one can
(`storage_schemas.objects.ObjectFolder.put_new`), and leaves it behind, marked as released, when it
ends. The holder rewrites its object every few seconds. Whoever waits watches with its own clock, so
that the clocks of different machines need not agree: an object that has not changed for a while is
stale, and the next number may be created; a holder on the same machine whose process has ended is
stale at once. A holder that was paused for so long sees the higher
number and stops; a worker asks `is_current` before each commit.
"""

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from storage_schemas.errors import RunError, UsageError, reason_of
from storage_schemas.objects import ObjectFolder

FOLDER = "lease"


@dataclass(frozen=True)
class LeaseTimes:
    """The pace of a lease, in seconds.

    Parameters
    ----------
    renew : float
        Time between two renewals by the holder.
    stale : float
        Time without a renewal after which another run may take the lease over; several times
        `renew`.
    wait : float
        Longest time that a run waits for the lease of another one.
    """

    renew: float = 5.0
    stale: float = 30.0
    wait: float = 0.0


@dataclass(frozen=True)
class Lease:
    """A lease that this process holds, or held.

    Parameters
    ----------
    store : str
        URL of the store.
    number : int
        Number of the lease; the highest one of a store is current.
    token : str
        Random name of the holder.
    """

    store: str
    number: int
    token: str


def is_current(lease: Lease) -> bool:
    """Whether no other run has taken the lease over; asks the store."""
    folder = ObjectFolder(lease.store)
    number, holder = _latest(folder)
    return number == lease.number and holder.get("token") == lease.token


@contextmanager
def coordinate(
    store: str, times: LeaseTimes | None = None, report: Callable[[str], None] | None = None
) -> Iterator[Lease]:
    """Hold the lease of a store for as long as the block runs.

    Parameters
    ----------
    store : str
        URL of the store.
    times : LeaseTimes, optional
    report : callable, optional
        Called once with the holder's name where the lease has to be waited for.

    Raises
    ------
    RunError
        ``store-in-use`` where another run holds the lease for longer than `times.wait`.
    UsageError
        ``store-unwritable`` where the lease cannot be written.
    """
    times = times or LeaseTimes()
    folder = ObjectFolder(store)
    try:
        lease = _acquire(folder, store, times, report)
    except OSError as error:
        raise UsageError("store-unwritable", reason_of(error), key=store) from None
    ended = threading.Event()
    renewal = threading.Thread(target=_renew, args=(folder, lease, times, ended), daemon=True)
    renewal.start()
    try:
        yield lease
    finally:
        ended.set()
        renewal.join()
        if is_current(lease):
            folder.put(_key(lease.number), _document(lease, 0, released=True))


def _acquire(
    folder: ObjectFolder, store: str, times: LeaseTimes, report: Callable[[str], None] | None
) -> Lease:
    began = seen_at = time.monotonic()
    seen: tuple[int, dict[str, object]] | None = None
    token = secrets.token_hex(8)
    while True:
        latest = _latest(folder)
        now = time.monotonic()
        if latest != seen:
            seen, seen_at = latest, now
        number, holder = latest
        free = number == 0 or holder.get("released") is True or _has_ended(holder)
        if free or now - seen_at >= times.stale:
            lease = Lease(store, number + 1, token)
            created = folder.put_new(_key(lease.number), _document(lease, 0))
            if created and is_current(lease):
                _forget(folder, lease.number)
                return lease
            continue
        name = f"{holder.get('host', 'another machine')}, process {holder.get('process', '?')}"
        # Whoever holds it may be gone: that shows only once it has not been renewed for a while.
        if now - began >= max(times.wait, times.stale + times.renew):
            raise RunError(
                "store-in-use",
                f"another run ({name}) writes to this store",
                key=store,
            )
        if report is not None:
            report(name)
            report = None
        time.sleep(min(1.0, times.renew / 2))


def _renew(folder: ObjectFolder, lease: Lease, times: LeaseTimes, ended: threading.Event) -> None:
    beat = 0
    while not ended.wait(times.renew):
        try:
            if not is_current(lease):
                return
            beat += 1
            folder.put(_key(lease.number), _document(lease, beat))
        except OSError:
            continue  # the next renewal may succeed; if none does, the lease becomes stale


def _latest(folder: ObjectFolder) -> tuple[int, dict[str, object]]:
    """The highest number and what its object says; 0 where there is none."""
    numbers = [int(key.split("/")[-1][:-5]) for key in _keys(folder)]
    if not numbers:
        return 0, {}
    try:
        found = json.loads(folder.get(_key(max(numbers))))
    except FileNotFoundError:
        return _latest(folder)
    except ValueError:
        found = {}  # half-written: somebody is about to hold it
    return max(numbers), found if isinstance(found, dict) else {}


def _keys(folder: ObjectFolder) -> list[str]:
    try:
        found = folder.find(FOLDER)
    except FileNotFoundError:
        return []
    return [key for key in found if key.removeprefix(f"{FOLDER}/").removesuffix(".json").isdigit()]


def _forget(folder: ObjectFolder, number: int) -> None:
    for key in _keys(folder):
        if int(key.split("/")[-1][:-5]) < number:
            folder.remove(key)


def _key(number: int) -> str:
    return f"{FOLDER}/{number:012}.json"


def _document(lease: Lease, beat: int, *, released: bool = False) -> bytes:
    document = {
        "token": lease.token,
        "beat": beat,
        "released": released,
        "host": socket.gethostname(),
        "process": os.getpid(),
        "machine": _machine(),
        "started": _started(os.getpid()),
    }
    return json.dumps(document).encode()


def _has_ended(holder: dict[str, object]) -> bool:
    """Whether the holder was a process of this very machine and is gone."""
    process, machine = holder.get("process"), holder.get("machine")
    if not isinstance(process, int) or not machine or machine != _machine():
        return False
    return _started(process) != holder.get("started")


def _machine() -> str:
    """This boot of this machine, and its process numbers; empty where Linux does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}:{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(process: int) -> str:
    """When a process began, in clock ticks since the boot (proc(5)); empty where it is gone."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
