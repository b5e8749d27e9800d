"""Types of settings: what a value must be, in words and as a check.

A type is ``int``, ``float``, ``bool``, ``str``, a ``Literal``, a ``tuple``, or one of these or
None. Its range and unit are an annotation: ``Annotated[float, limits("mm", ge=0)]``.
"""

import json
import math
from collections.abc import Collection, Iterator
from dataclasses import is_dataclass
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeGuard, Union, get_args, get_origin

import msgspec
from msgspec import Meta

from storage_schemas.errors import UsageError


def limits(unit: str = "", **bounds: Any) -> Meta:
    """Annotation of a field: its unit, and its range in the words of `msgspec.Meta`."""
    return Meta(**bounds, extra={"unit": unit})


def is_part(hint: Any) -> TypeGuard[type]:
    """Whether the type of a field is a settings dataclass itself."""
    return isinstance(hint, type) and is_dataclass(hint)


def unit_of(hint: Any) -> str:
    """The unit that a type is annotated with; empty where there is none."""
    for meta in _metas(hint):
        if meta.extra and "unit" in meta.extra:
            return str(meta.extra["unit"])
    return ""


def _metas(hint: Any) -> Iterator[Meta]:
    """The annotations of a type and of what it is made of, outermost first."""
    if get_origin(hint) is Annotated:
        yield from (meta for meta in get_args(hint)[1:] if isinstance(meta, Meta))
        yield from _metas(get_args(hint)[0])
    else:
        for inner in get_args(hint):
            yield from _metas(inner)


def convert(value: Any, hint: Any, path: str, choices: Collection[str] | None = None) -> Any:
    """A value as the type of a field has it.

    Raises
    ------
    UsageError
        ``config-invalid``, naming `path`.
    """
    bare = _bare(hint)
    if is_part(bare) and isinstance(value, bare):
        return value
    names = choices if choices is not None else literals(hint)
    try:
        found = msgspec.convert(value, hint)
        right = _is_finite(found) and (choices is None or found in choices)
    except (msgspec.ValidationError, TypeError):
        right = False
    if right:
        return found
    near = get_close_matches(str(value), names, 1, 0.5)
    hint_text = f"; did you mean {near[0]}?" if near else ""
    wanted = f"one of {', '.join(names)}" if names else expected(hint)
    raise invalid(path, f"expected {wanted}, got {shown(value)}{hint_text}")


def _is_finite(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def literals(hint: Any) -> tuple[str, ...]:
    """The names that a type allows, where it is a choice of names."""
    bare = _bare(hint)
    return get_args(bare) if get_origin(bare) is Literal else ()


def _bare(hint: Any) -> Any:
    """A type without its annotations, and without its ``None``."""
    while get_origin(hint) in (Annotated, Union, UnionType):
        hint = next(inner for inner in get_args(hint) if inner is not NoneType)
    return hint


_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_LIMITS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def expected(hint: Any) -> str:
    """What a field takes, in words: the kind of value and its range."""
    if get_origin(hint) in (Union, UnionType):
        kinds = [inner for inner in get_args(hint) if inner is not NoneType]
        none = len(kinds) < len(get_args(hint))
        return " or ".join([*map(expected, kinds), *["none"] * none])
    if get_origin(hint) is Annotated:
        inner, *metas = get_args(hint)
        limits = [
            f"{words} {limit:g}"
            for meta in metas
            for name, words in _LIMITS.items()
            if (limit := getattr(meta, name)) is not None
        ]
        return expected(inner) + (f" {' and '.join(limits)}" if limits else "")
    if get_origin(hint) is tuple:
        inner = get_args(hint)
        if inner[-1] is Ellipsis:
            return f"a list, each {expected(inner[0])}"
        return f"a list of {len(inner)}, each {expected(inner[0])}"
    if names := literals(hint):
        return f"one of {', '.join(names)}"
    return _NAMES.get(hint, str(hint))


def shown(value: Any) -> str:
    """A value as an error shows it, cut where it is long."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def is_kind(hint: Any, kind: type) -> bool:
    """Whether a type is `kind`, whatever its range, and whether or not None is allowed."""
    bare = _bare(hint)
    return bare is kind or get_origin(bare) is kind


def allows_none(hint: Any) -> bool:
    """Whether None is a value of a type."""
    return get_origin(hint) in (Union, UnionType) and NoneType in get_args(hint)


def invalid(path: str, detail: str) -> UsageError:
    """The error of a setting, which names it."""
    return UsageError("config-invalid", f"{path}: {detail}" if path else detail)
