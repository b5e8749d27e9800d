import errno
import pickle

import pytest

from storage_schemas.errors import (
    CspineError,
    RunError,
    SliceError,
    StoreError,
    StudyError,
    UsageError,
    reason_of,
)

CLASSES = (UsageError, RunError, StoreError, StudyError, SliceError)


@pytest.mark.parametrize("cls", CLASSES)
def test_every_kind_has_an_advice_and_fits_one_line(cls: type[CspineError]) -> None:
    assert cls.kinds
    for kind, advice in cls.kinds.items():
        message = str(cls(kind, "two\nlines  here", key="a/b"))
        assert message == f"a/b: two lines here [{kind}]; {advice}"


@pytest.mark.parametrize("cls", CLASSES)
def test_errors_cross_process_boundaries_whole(cls: type[CspineError]) -> None:
    error = cls(next(iter(cls.kinds)), "detail", key="some/key")
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.kind, copy.detail, copy.key) == (cls, error.kind, "detail", "some/key")


def test_an_unknown_kind_is_a_mistake_in_the_code() -> None:
    with pytest.raises(ValueError, match="no kind"):
        SliceError("no-such-kind", "detail")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/some/path"), "No space left on device"),
        (OSError(errno.EIO, "ClientError:\n  slow down"), "ClientError: slow down"),
        (FileNotFoundError("no such\nbucket"), "no such bucket"),
        (ValueError("  bad magic "), "bad magic"),
        (OSError(), "OSError"),
        (TimeoutError(""), "TimeoutError"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
    ],
)
def test_a_reason_is_one_line_without_the_path(error: BaseException, reason: str) -> None:
    assert reason_of(error) == reason
