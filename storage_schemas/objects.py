"""Objects below a URL: whole-object requests with a limited number of retries, all counted.

All access to sources and stores goes through this module. Transient faults (throttling, server
errors, lost connections, stalls) are retried a few times with growing, jittered waits; lasting ones
(missing, forbidden, disk full) fail at once. Credentials come from the environment of the process
and are never stored.
"""

import errno
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec.asyn import sync

from storage_schemas.local_files import check_regular, remove_tree, replace_file, sync_files

T = TypeVar("T")

REQUESTS = 16
"""Number of concurrent requests where many objects are read or written."""

_STALL_SECONDS = 30.0
_SLOWEST_BYTES_PER_SECOND = 64 << 10
"""A write that takes longer than both together is given up, and tried again."""

_LASTING = (
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    FileExistsError,
)
_LASTING_ERRNOS = {
    errno.EINVAL,
    errno.ENOSYS,
    errno.ENAMETOOLONG,
    errno.EMSGSIZE,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
}
# Libraries that raise other exceptions than OSError on network faults. Their configuration errors,
# which no retry mends, are recognised by name.
_NETWORK_LIBRARIES = {"aiohttp", "aiobotocore", "botocore", "gcsfs", "google", "azure", "requests"}
_CONFIGURATION_ERRORS = ("Credential", "Validation", "Config", "Profile", "Region")


@dataclass(frozen=True)
class RetryPolicy:
    """Number of attempts and waits between them for transient faults.

    Parameters
    ----------
    attempts : int
        Number of attempts, the first one included.
    first_wait_s, longest_wait_s : float
        Waits in seconds double from the first to the longest; each is multiplied by a random
        factor between 0.5 and 1.
    """

    attempts: int = 6
    first_wait_s: float = 0.25
    longest_wait_s: float = 10.0

    def wait(self, attempt: int) -> float:
        """Return the seconds to wait after an attempt, counted from 0."""
        longest = min(self.longest_wait_s, self.first_wait_s * 2.0**attempt)
        # Jitter, so that workers that were throttled together do not retry together.
        return longest * random.uniform(0.5, 1.0)


@dataclass
class RequestCounts:
    """Number of requests so far.

    Parameters
    ----------
    get, put, list, remove : int
        Requests of each kind, retries included.
    retries : int
        Requests that repeated an earlier one after a fault.
    """

    get: int = 0
    put: int = 0
    list: int = 0
    remove: int = 0
    retries: int = 0


def for_each(
    work: Callable[[int], None], items: Iterable[int], advance: Callable[[], None]
) -> None:
    """Call a function for each item, `REQUESTS` at once; after a failure no further call begins.

    Parameters
    ----------
    work : callable
        Called with each item, in a thread.
    items : iterable of int
        Arguments of `work`.
    advance : callable
        Called after each item, in the order of the items.
    """
    with ThreadPoolExecutor(REQUESTS) as pool:
        try:
            for _ in pool.map(work, items):
                advance()
        except BaseException:
            # Otherwise the pool would first run all waiting calls.
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def as_text(key: str) -> str:
    """Return a key as valid Unicode: bytes of a file name that are no UTF-8 become ``\\xNN``."""
    return key.encode(errors="surrogateescape").decode(errors="backslashreplace")


class ObjectFolder:
    """Objects below a URL, by key.

    Parameters
    ----------
    url : str
        fsspec URL: a path, ``s3://bucket/prefix``, ``memory://name``.
    policy : RetryPolicy, optional
        Retries of transient faults.
    """

    def __init__(self, url: str, policy: RetryPolicy | None = None) -> None:
        self.url = url
        self.policy = policy or RetryPolicy()
        self.counts = RequestCounts()
        self._lock = threading.Lock()
        self.fs, root = fsspec.core.url_to_fs(url, **_options(url))
        if hasattr(self.fs, "retries"):
            self.fs.retries = 1  # otherwise s3fs retries by itself, uncounted
        self.root = str(root).rstrip("/")
        self._local = "file" in _protocols(self.fs)

    def get(self, key: str, start: int | None = None, end: int | None = None) -> bytes:
        """Read an object, or a range of its bytes, in one request.

        Parameters
        ----------
        key : str
            Key below the URL.
        start, end : int, optional
            Range of bytes, the end exclusive.

        Raises
        ------
        OSError
            FileNotFoundError and PermissionError at once, others after the last retry.
        """

        def read(path: str) -> bytes:
            if self._local:
                check_regular(path)
            data: bytes = self.fs.cat_file(path, start=start, end=end)
            return data

        return self._ask("get", key, read)

    def get_all(self, keys: Iterable[str]) -> Iterator[tuple[str, bytes | OSError]]:
        """Read objects, `REQUESTS` at once; yields key and bytes, or key and error, in order."""

        def get(key: str) -> tuple[str, bytes | OSError]:
            try:
                return key, self.get(key)
            except OSError as error:
                return key, error

        with ThreadPoolExecutor(REQUESTS) as pool:
            yield from pool.map(get, keys)

    def put(self, key: str, data: bytes) -> None:
        """Write an object atomically; raises OSError."""
        self._ask("put", key, lambda path: self._write(path, data))

    def put_new(self, key: str, data: bytes) -> bool:
        """Write an object only where there is none; of several writers at once, one succeeds.

        On S3 that is a conditional write (``If-None-Match: *``), on a disk an exclusive creation.

        Returns
        -------
        bool
            False where there was an object already.
        """

        def write(path: str) -> bool:
            if self._local:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            try:
                self._send(path, data, mode="create")
            except FileExistsError:
                return False
            if self._local:
                sync_files([path], self.root)
            return True

        return self._ask("put", key, write)

    def put_all(self, objects: Mapping[str, bytes]) -> None:
        """Write objects, `REQUESTS` at once, each atomically; raises OSError."""
        with ThreadPoolExecutor(1 if self._local else REQUESTS) as pool:
            for _ in pool.map(self.put, objects, objects.values()):
                pass

    def sync(self, keys: Iterable[str]) -> None:
        """See objects that were put on the disk; an object store has them when it answers."""
        if self._local:
            sync_files(map(self._path, keys), self.root)

    def find(self, prefix: str = "") -> dict[str, dict[str, Any]]:
        """List all objects below a prefix: fsspec's details of each by key, sorted by key."""
        self.fs.invalidate_cache()
        found = self._ask("list", prefix, lambda path: self.fs.find(path, detail=True))
        return {name.removeprefix(f"{self.root}/"): info for name, info in sorted(found.items())}

    def children(self) -> list[str]:
        """List the names of files and folders directly below the URL, sorted."""
        self.fs.invalidate_cache()
        found = self._ask("list", "", lambda path: self.fs.ls(path, detail=False))
        return sorted(str(name).rstrip("/").rsplit("/", 1)[-1] for name in found)

    def exists(self, key: str) -> bool:
        """Return whether there is an object of this key, or any below it."""
        self.fs.invalidate_cache()
        return bool(self._ask("list", key, self.fs.exists))

    def is_folder(self, key: str = "") -> bool:
        """Return whether there are objects below a key."""
        return bool(self._ask("list", key, self.fs.isdir))

    def remove(self, key: str) -> None:
        """Remove an object, or all below it; nothing there is fine.

        Names are literal: a ``*``, ``?`` or ``[`` in the folder's URL or in the key is a character
        and never a pattern.

        Raises
        ------
        ValueError
            For a key that is empty or leads out of the folder.
        OSError
        """
        if not all(part not in ("", ".", "..") for part in key.split("/")):
            raise ValueError(f"{key!r} is no key below {self.url}")
        if not self.exists(key):
            return
        if self._local:
            self._ask("remove", key, remove_tree)
            self.sync([key])
            return
        # fsspec's own recursive removal takes names for patterns.
        below = [name for name in self.find(key) if name == key or name.startswith(f"{key}/")]
        with ThreadPoolExecutor(REQUESTS) as pool:
            for _ in pool.map(self._remove_object, below):
                pass

    def _remove_object(self, key: str) -> None:
        with suppress(FileNotFoundError):
            self._ask("remove", key, self.fs.rm_file)

    def _write(self, path: str, data: bytes) -> None:
        if self._local:
            replace_file(path, data)
        else:
            self._send(path, data)

    def _send(self, path: str, data: bytes, **options: Any) -> None:
        """Write an object within a time that grows with its size.

        A server that accepts a connection and then reads nothing stalls no read, so the time-outs
        of the network libraries never end such a request.
        """
        if not getattr(self.fs, "async_impl", False):
            self.fs.pipe_file(path, data, **options)
            return
        seconds = _STALL_SECONDS + len(data) / _SLOWEST_BYTES_PER_SECOND
        sync(self.fs.loop, self.fs._pipe_file, path, data, timeout=seconds, **options)

    def url_of(self, key: str) -> str:
        """Return the URL of an object, with its protocol."""
        return str(self.fs.unstrip_protocol(self._path(key)))

    def _path(self, key: str) -> str:
        return f"{self.root}/{key}" if key else self.root

    def _ask(self, kind: str, key: str, request: Callable[[str], T]) -> T:
        """Make one request, and repeat it after transient faults."""
        for attempt in range(self.policy.attempts):
            self._count(kind)
            try:
                return request(self._path(key))
            except Exception as error:
                if not _may_pass(error):
                    if isinstance(error, OSError) or not _of_network(error):
                        raise
                    raise _as_os_error(error, key) from error
                if attempt + 1 == self.policy.attempts:
                    raise _as_os_error(error, key, f"{attempt + 1} attempts: ") from error
                self._count("retries")
                time.sleep(self.policy.wait(attempt))
        raise AssertionError("a policy has at least one attempt")

    def _count(self, kind: str) -> None:
        with self._lock:
            setattr(self.counts, kind, getattr(self.counts, kind) + 1)


def _may_pass(error: Exception) -> bool:
    """Return whether a fault is transient: throttling, a server error, a lost connection."""
    if isinstance(error, OSError):
        return not isinstance(error, _LASTING) and error.errno not in _LASTING_ERRNOS
    name = type(error).__name__
    return _of_network(error) and not any(word in name for word in _CONFIGURATION_ERRORS)


def _of_network(error: Exception) -> bool:
    return type(error).__module__.partition(".")[0] in _NETWORK_LIBRARIES


def _as_os_error(error: Exception, key: str, prefix: str = "") -> OSError:
    """Convert any exception to an OSError."""
    text = " ".join(str(error).split())
    code = error.errno if isinstance(error, OSError) and error.errno else errno.EIO
    return OSError(code, f"{prefix}{type(error).__name__}: {text}", key)


def _options(url: str) -> dict[str, Any]:
    """Return options that leave retries and time-outs of S3 clients to this module."""
    if fsspec.core.split_protocol(url)[0] not in ("s3", "s3a"):
        return {}
    given = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
    ours = {
        "retries": {"total_max_attempts": 1},
        "connect_timeout": 10,
        "read_timeout": 30,
        "max_pool_connections": 2 * REQUESTS,
    }
    # A concurrent read of one object needs one request for each part, and one for its size.
    return {"config_kwargs": ours | given, "use_listings_cache": False, "max_concurrency": 1}


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)
