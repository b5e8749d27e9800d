"""Strict reading of JSON from outside into dataclasses, by msgspec.

Types are checked and never converted (but an integer may stand for a float), a number must fit its
field, and NaN and infinity are no JSON. Every fault is a ValueError that says where in the document
it is, for example ``Expected `int`, got `str` - at `$.inputs[3].size```; the caller turns it into
an error of its own kind. Fields that the dataclass does not have are ignored.
"""

from functools import cache
from threading import Lock
from typing import Annotated, Any, TypeVar, cast

import msgspec

from storage_schemas.errors import StudyError
from storage_schemas.study_key import StudyKey

T = TypeVar("T")

Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
"""A whole number that fits an int32 column."""
Size = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""A whole number that fits an int64 column."""
Side = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
"""A number of voxels along one axis."""
Spacing = Annotated[float, msgspec.Meta(gt=0)]
"""A distance in mm."""

_TOO_DEEP = "nested too deeply"
_LOCK = Lock()


def decode(text: bytes | str, kind: type[T]) -> T:
    """Read JSON text into a dataclass or another type.

    Parameters
    ----------
    text : bytes or str
        Bytes are UTF-8.
    kind : type
        What the whole document is.

    Raises
    ------
    ValueError
        Where the text is no JSON, or not of this type.
    """
    try:
        found: T = _decoder(cast(Any, kind)).decode(text)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    return found


def parse(text: bytes | str) -> Any:
    """Read JSON text of any form into plain values; raises ValueError as `decode` does."""
    return decode(text, cast(type[Any], Any))


def convert(document: Any, kind: type[T]) -> T:
    """Read JSON values that are parsed already, with the checks of `decode`."""
    _decoder(cast(Any, kind))  # so that msgspec knows the type before it converts
    try:
        return msgspec.convert(document, kind, dec_hook=_read_key)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None


def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    # msgspec 0.22 crashes the process if two threads build the decoder of a new type at once.
    with _LOCK:
        return _make_decoder(kind)


@cache
def _make_decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind, dec_hook=_read_key)


def _read_key(kind: type, value: Any) -> Any:
    """Build a `StudyKey`, which is no built-in type of msgspec."""
    if kind is not StudyKey:
        raise NotImplementedError(kind)
    if not isinstance(value, str):
        raise ValueError(f"Expected `str`, got `{type(value).__name__}`")
    try:
        return StudyKey(value)
    except StudyError as error:
        raise ValueError(error.detail) from None
