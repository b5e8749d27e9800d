"""Settings: frozen dataclasses whose fields are listed, read and checked in one way.

A field's type says what it takes (``Annotated`` with `msgspec.Meta` for its range and unit), the
class's numpydoc section says what it does. Command lines, configuration files and help are made of
these; nothing is written a second time. A path such as ``train.epochs`` names a field of a part.
"""

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from inspect import cleandoc
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    TypeGuard,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec
from msgspec import Meta

from storage_schemas.errors import UsageError

Kind = TypeVar("Kind")

Choices = Mapping[str, Collection[str]]
"""The names that a field takes beyond what its type says, by path."""
OldNames = Mapping[str, str]
"""Paths of fields that had another name before, and the paths of today."""


@dataclass(frozen=True)
class Setting:
    """One field of a settings dataclass.

    Parameters
    ----------
    path : str
        Names of the parts and of the field, with dots between, e.g. ``train.epochs``.
    hint : type
        Type of the field, with its annotations.
    default : object
        Value where nothing is given.
    text : str
        Description, from the docstring of the dataclass.
    unit : str
        Unit of the value, e.g. ``mm``; empty where it has none.
    """

    path: str
    hint: Any
    default: Any
    text: str
    unit: str

    @property
    def name(self) -> str:
        """Name of the field, without those of the parts."""
        return self.path.rpartition(".")[2]


def limits(unit: str = "", **bounds: Any) -> Meta:
    """Annotation of a field: its unit, and its range in the words of `msgspec.Meta`."""
    return Meta(**bounds, extra={"unit": unit})


@cache
def settings_of(kind: type) -> Mapping[str, Setting]:
    """Every field of a settings dataclass and of its parts, by path."""
    return {setting.path: setting for setting in _walk(kind, "")}


def _walk(kind: type, prefix: str) -> Iterator[Setting]:
    hints, texts = _hints(kind), describe_fields(kind)
    for field in fields(kind):
        hint = hints[field.name]
        if _is_part(hint):
            yield from _walk(hint, f"{prefix}{field.name}.")
        else:
            text = texts.get(field.name, "")
            yield Setting(prefix + field.name, hint, _default(field), text, _unit(hint))


def _default(field: Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


def _is_part(hint: Any) -> TypeGuard[type]:
    return isinstance(hint, type) and is_dataclass(hint)


@cache
def _hints(kind: type) -> Mapping[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _unit(hint: Any) -> str:
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


def describe_fields(kind: type) -> dict[str, str]:
    """The descriptions in the ``Parameters`` section of a numpydoc docstring, by field."""
    lines = cleandoc(kind.__doc__ or "").splitlines()
    try:
        start = lines.index("Parameters") + 2
    except ValueError:
        return {}
    found: dict[str, list[str]] = {}
    own: list[str] = []
    for line, after in zip(lines[start:], [*lines[start + 1 :], ""], strict=True):
        if re.fullmatch(r"-{3,}", after.strip()):
            break  # the next section
        if line.startswith(" ") or not line:
            own.append(line.strip())
        else:
            own = []
            found |= {name.strip(): own for name in line.partition(" : ")[0].split(",")}
    return {name: " ".join(part for part in words if part) for name, words in found.items()}


def check(settings: Any) -> None:
    """Check the fields of one settings dataclass against their types; for ``__post_init__``.

    Values that are equal but of another type, such as a list for a tuple or 3 for 3.0, become what
    the field's type says.

    Raises
    ------
    UsageError
        ``config-invalid``, naming the class and the field.
    """
    kind: type = type(settings)
    for name, hint in _hints(kind).items():
        value = getattr(settings, name)
        if _is_part(hint):
            if not isinstance(value, hint):
                got = type(value).__name__
                raise _invalid(f"{kind.__name__}.{name}", f"expected {hint.__name__}, got {got}")
        else:
            object.__setattr__(settings, name, convert(value, hint, f"{kind.__name__}.{name}"))


def read_settings(
    base: Kind,
    document: Any,
    *,
    choices: Choices | None = None,
    old_names: OldNames | None = None,
    complete: bool = False,
) -> Kind:
    """Settings with the values of a document in the place of those of `base`.

    Parameters
    ----------
    base : dataclass instance
        Values of what the document leaves out.
    document : mapping
        Plain values by field, mappings by part: as TOML and JSON have them.
    choices : mapping of str to collection of str, optional
        See `Choices`.
    old_names : mapping of str to str, optional
        See `OldNames`.
    complete : bool
        Whether the document must name every field.

    Raises
    ------
    UsageError
        ``config-invalid``, naming the field, what is expected and what was given.
    """
    current = _renamed(document, old_names or {})
    return cast(Kind, _read(base, current, "", choices or {}, complete))


def _read(base: Any, document: Any, prefix: str, choices: Choices, complete: bool) -> Any:
    kind: type = type(base)
    hints = _hints(kind)
    if not isinstance(document, Mapping):
        raise _invalid(prefix.rstrip("."), f"expected a table of settings, got {_shown(document)}")
    if complete and (missing := [name for name in hints if name not in document]):
        raise _invalid(prefix + missing[0], "is missing")
    values = {}
    for name, value in document.items():
        path = f"{prefix}{name}"
        if name not in hints:
            raise unknown(path, [f"{prefix}{known}" for known in hints])
        if _is_part(hints[name]):
            values[name] = _read(getattr(base, name), value, f"{path}.", choices, complete)
        else:
            values[name] = convert(value, hints[name], path, choices.get(path))
    changed = {field.name: getattr(base, field.name) for field in fields(base)} | values
    try:
        return kind(**changed)
    except UsageError as error:
        raise _invalid(prefix.rstrip("."), error.detail) from None


def _renamed(document: Any, old_names: OldNames) -> Any:
    if not isinstance(document, Mapping):
        return document
    found = dict(document)
    for old, new in old_names.items():
        *parts, name = old.split(".")
        inner: Any = found
        for part in parts:
            if not isinstance(inner.get(part), Mapping):
                break
            inner[part] = dict(inner[part])
            inner = inner[part]
        else:
            if name in inner:
                today = new.rpartition(".")[2]
                if today in inner:
                    raise _invalid(new, f"is given twice, also by its old name {old}")
                inner[today] = inner.pop(name)
    return found


def unknown(path: str, known: Collection[str]) -> UsageError:
    """The error of a name that is none of those known, with the nearest of them."""
    near = get_close_matches(path, known, 1, 0.5)
    return _invalid(
        path, f"no such setting; did you mean {near[0]}?" if near else "no such setting"
    )


def convert(value: Any, hint: Any, path: str, choices: Collection[str] | None = None) -> Any:
    """A value as the type of a field has it.

    Raises
    ------
    UsageError
        ``config-invalid``, naming `path`.
    """
    bare = _bare(hint)
    if _is_part(bare) and isinstance(value, bare):
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
    raise _invalid(path, f"expected {wanted}, got {_shown(value)}{hint_text}")


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


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _invalid(path: str, detail: str) -> UsageError:
    return UsageError("config-invalid", f"{path}: {detail}" if path else detail)
