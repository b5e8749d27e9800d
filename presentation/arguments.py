"""Values on the command line: what a text stands for, given the type that is expected."""

import argparse
import json
from collections.abc import Callable
from typing import Annotated, Any

from presentation.setting_types import allows_none, convert, is_kind, limits, literals
from storage_schemas.errors import UsageError


def argument(hint: Any) -> Callable[[str], Any]:
    """A reader of one type, for the ``type`` of an argument of argparse."""

    def read(text: str) -> Any:
        try:
            return convert(parse_text(text, hint), hint, "")
        except UsageError as error:
            raise argparse.ArgumentTypeError(error.detail) from None

    return read


integer = argument(int)
number = argument(Annotated[int, limits(ge=0)])
positive_number = argument(Annotated[int, limits(ge=1)])
seconds = argument(Annotated[float, limits("s", ge=0.001)])
share = argument(Annotated[float, limits("share", ge=0, le=1)])


def parse_text(text: str, hint: Any) -> Any:
    """Parse a text according to the type of its field.

    Lists are written with commas between (``0.5,1``) or as JSON (``[[-500, 1300]]``); ``none`` is
    the absence of a value. A text that is not such a value is returned unchanged.
    """
    if allows_none(hint) and text.lower() in ("none", "null"):
        return None
    if is_kind(hint, str) or literals(hint):
        return text
    if is_kind(hint, tuple):
        if text.startswith("["):
            try:
                return json.loads(text)
            except ValueError:
                return text
        return [_scalar(part.strip()) for part in text.split(",") if part.strip()]
    return _scalar(text)


def _scalar(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
