"""One coordinator a store, on a disk and on S3."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline import lease as leases
from pipeline.lease import LeaseTimes, coordinate, is_current
from storage_schemas.errors import RunError
from storage_schemas.objects import ObjectFolder
from tests.s3 import serve_s3

QUICK = LeaseTimes(renew=0.05, stale=0.4)


@pytest.fixture(params=["disk", "s3"])
def url(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    if request.param == "disk":
        yield str(tmp_path / "store")
        return
    with serve_s3(monkeypatch) as server:
        yield server.url("store[1]")


def leave_behind(url: str, change: Callable[[dict[str, object]], None]) -> None:
    """Change the one lease of a store, as another process would have left it."""
    folder = ObjectFolder(url)
    (key,) = folder.find("lease")
    document = json.loads(folder.get(key))
    change(document)
    folder.put(key, json.dumps(document).encode())


def test_a_second_run_is_refused_while_the_first_one_lives(url: str) -> None:
    with (
        coordinate(url, QUICK) as first,
        pytest.raises(RunError, match="another run") as refused,
        coordinate(url, QUICK),
    ):
        pass
    assert refused.value.kind == "store-in-use"
    assert first.number == 1


def test_a_released_lease_is_free_at_once(url: str) -> None:
    patient = LeaseTimes(renew=0.05, stale=3600)
    with coordinate(url, patient):
        pass
    with coordinate(url, patient) as second:
        assert second.number == 2
        assert is_current(second)


def test_a_run_that_waits_gets_the_lease_when_it_is_released(url: str) -> None:
    told: list[str] = []
    entered = threading.Event()

    def wait_for_it() -> None:
        times = LeaseTimes(renew=0.05, stale=3600, wait=30)
        with coordinate(url, times, told.append):
            entered.set()

    with coordinate(url, QUICK):
        waiting = threading.Thread(target=wait_for_it)
        waiting.start()
        while not told:
            waiting.join(0.01)
        assert not entered.is_set()
    waiting.join(30)
    assert entered.is_set()
    assert len(told) == 1


def test_a_lease_that_nobody_renews_is_taken_over_and_its_holder_sees_it(url: str) -> None:
    still = LeaseTimes(renew=3600, stale=0.3)
    with coordinate(url, still) as paused:
        leave_behind(url, lambda document: document.update(machine="another"))
        with coordinate(url, QUICK) as second:
            assert second.number == paused.number + 1
            assert not is_current(paused)
    with coordinate(url, QUICK) as third:  # the paused one's end disturbs nobody
        assert third.number == 3


def test_a_renewed_lease_of_another_machine_is_never_stale(url: str) -> None:
    with coordinate(url, QUICK), pytest.raises(RunError), coordinate(url, QUICK):
        pass


def test_the_lease_of_a_killed_process_of_this_machine_is_free_at_once(tmp_path: Path) -> None:
    script = (
        "import os, sys\n"
        "from pipeline.lease import coordinate\n"
        "with coordinate(sys.argv[1]):\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    url = str(tmp_path / "store")
    subprocess.run([sys.executable, "-c", script, url], check=False)
    with coordinate(url, LeaseTimes(stale=3600)) as mine:
        assert mine.number == 2


def test_of_many_that_ask_at_once_one_holds_at_a_time(url: str) -> None:
    inside, most, held = [0], [0], [0]
    lock = threading.Lock()

    def work() -> None:
        for _ in range(3):
            with coordinate(url, LeaseTimes(renew=0.02, stale=3600, wait=60)):
                with lock:
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    held[0] += 1
                with lock:
                    inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert held[0] == 18
    assert most[0] == 1


def test_a_lease_that_is_no_json_counts_as_held(url: str) -> None:
    ObjectFolder(url).put("lease/000000000007.json", b"{")
    with coordinate(url, QUICK) as mine:  # after it was seen unchanged for as long as it takes
        assert mine.number == 8
    assert leases.FOLDER == "lease"
