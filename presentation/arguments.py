"""What the command line takes for a value, and why not another."""

import argparse
from collections.abc import Callable
from typing import TypeVar

Number = TypeVar("Number", int, float)


def number(text: str) -> int:
    """A whole number of 0 or more."""
    return at_least(0, read(text, int, "whole number"))


def positive_number(text: str) -> int:
    """A whole number of 1 or more."""
    return at_least(1, read(text, int, "whole number"))


def seconds(text: str) -> float:
    """A time of a millisecond or more."""
    return at_least(0.001, read(text, float, "number"))


def share(text: str) -> float:
    """A number from 0 to 1."""
    value = at_least(0.0, read(text, float, "number"))
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text} is more than 1")
    return value


def read(text: str, kind: Callable[[str], Number], name: str) -> Number:
    """Read a value, or say that the text is no such thing."""
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no {name}") from None


def at_least(least: Number, value: Number) -> Number:
    """Return the value, or say that it is too small."""
    if not value >= least:
        raise argparse.ArgumentTypeError(f"{value} is less than {least}")
    return value
