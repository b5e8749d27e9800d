"""Names are literal: no character of a URL or a key is a pattern, and no key leads outside."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from storage_schemas import objects
from storage_schemas.objects import ObjectFolder, RetryPolicy
from tests.s3 import S3Server, serve_s3

PATTERNS = ("out[1]", "out?", "out*", "o[a-z]t1", "**", "{out1,out2}")
NEIGHBOURS = ("out1", "out2", "out", "out10")


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with serve_s3(monkeypatch) as server:
        yield server


@pytest.fixture(params=["disk", "s3", "memory"])
def url_of(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], str]:
    if request.param == "s3":
        return request.getfixturevalue("s3").url
    if request.param == "memory":
        return lambda name: f"memory://{tmp_path.name}/{name}"
    return lambda name: str(tmp_path / name)


@pytest.mark.parametrize("name", PATTERNS)
def test_removal_touches_nothing_but_the_named_key(url_of: Callable[[str], str], name: str) -> None:
    for other in (name, *NEIGHBOURS):
        ObjectFolder(url_of(other)).put_all({"1.2/a": b"1", "1.2/b/c": b"2", "1.23/a": b"3"})
    ObjectFolder(url_of(name)).remove("1.2")
    assert set(ObjectFolder(url_of(name)).find()) == {"1.23/a"}
    for other in NEIGHBOURS:
        assert set(ObjectFolder(url_of(other)).find()) == {"1.2/a", "1.2/b/c", "1.23/a"}


@pytest.mark.parametrize("name", ["*", "[a-z]", "?"])
def test_a_key_is_no_pattern_either(url_of: Callable[[str], str], name: str) -> None:
    folder = ObjectFolder(url_of("store"))
    folder.put_all({f"records/{name}": b"1", "records/a": b"2", "records/b": b"3"})
    folder.remove(f"records/{name}")
    assert set(folder.find()) == {"records/a", "records/b"}


@pytest.mark.parametrize("key", ["", ".", "..", "../neighbour", "a/../../neighbour", "/", "a//b"])
def test_a_key_that_leads_outside_is_refused(url_of: Callable[[str], str], key: str) -> None:
    ObjectFolder(url_of("neighbour")).put("kept", b"1")
    folder = ObjectFolder(url_of("store"))
    folder.put("a/b", b"1")
    with pytest.raises(ValueError, match="is no key below"):
        folder.remove(key)
    assert set(ObjectFolder(url_of("neighbour")).find()) == {"kept"}
    assert set(folder.find()) == {"a/b"}


def test_a_link_is_removed_and_not_followed(tmp_path: Path) -> None:
    ObjectFolder(str(tmp_path / "other")).put("kept", b"1")
    folder = ObjectFolder(str(tmp_path / "store"))
    folder.put("a", b"1")
    (tmp_path / "store" / "link").symlink_to(tmp_path / "other", target_is_directory=True)
    folder.remove("link")
    assert (tmp_path / "other" / "kept").exists()
    assert not (tmp_path / "store" / "link").is_symlink()


def test_only_the_first_of_two_creations_succeeds(url_of: Callable[[str], str]) -> None:
    folder = ObjectFolder(url_of("store"))
    assert folder.put_new("lease", b"first")
    assert not folder.put_new("lease", b"second")
    assert folder.get("lease") == b"first"


def test_an_upload_that_a_server_never_reads_is_given_up(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "_STALL_SECONDS", 0.3)
    folder = ObjectFolder(s3.url("x"), RetryPolicy(attempts=2, first_wait_s=0.01))
    s3.fault = lambda method, path: "silence" if method == "PUT" else None
    with pytest.raises(OSError, match="2 attempts"):
        folder.put("key", b"voxels")
    assert folder.counts.put == 2
