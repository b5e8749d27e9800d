"""What the command line takes for a value, and why not another."""

import argparse
from collections.abc import Callable
from typing import TypeVar

from storage_schemas.errors import UsageError
from storage_schemas.vertebrae import parse_levels

Number = TypeVar("Number", int, float)


def number(text: str) -> int:
    """A whole number of 0 or more."""
    return _at_least(0, _read(text, int, "whole number"))


def positive_number(text: str) -> int:
    """A whole number of 1 or more."""
    return _at_least(1, _read(text, int, "whole number"))


def seconds(text: str) -> float:
    """A time of a millisecond or more."""
    return _at_least(0.001, _read(text, float, "number"))


def share(text: str) -> float:
    """A number from 0 to 1."""
    value = _at_least(0.0, _read(text, float, "number"))
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text} is more than 1")
    return value


def size(text: str) -> int:
    """A number of bytes with a unit, e.g. 1.5GiB."""
    from dask.utils import parse_bytes

    return _at_least(1, int(_read(text, parse_bytes, "size such as 4GiB")))


def levels(text: str) -> tuple[str, ...]:
    """Names of vertebrae, with commas between."""
    try:
        return parse_levels(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(error.detail) from None


def _read(text: str, kind: Callable[[str], Number], name: str) -> Number:
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no {name}") from None


def _at_least(least: Number, value: Number) -> Number:
    if not value >= least:
        raise argparse.ArgumentTypeError(f"{value} is less than {least}")
    return value
