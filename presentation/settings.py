"""Settings: frozen dataclasses whose fields are listed, read and checked in one way.

The type of a field defines its values (``Annotated`` with `msgspec.Meta` for range and unit), and
the numpydoc section of its class describes it. Command lines, configuration files and help are
generated from both. A path such as ``train.epochs`` names a field of a part.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from difflib import get_close_matches
from functools import cache
from inspect import cleandoc
from typing import Any, TypeVar, cast, get_type_hints

from presentation.setting_types import convert, invalid, is_part, shown, unit_of
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


@cache
def settings_of(kind: Any) -> Mapping[str, Setting]:
    """Every field of a settings dataclass and of its parts, by path."""
    return {setting.path: setting for setting in _walk(kind, "")}


def _walk(kind: type, prefix: str) -> Iterator[Setting]:
    hints, texts = _hints(kind), describe_fields(kind)
    for field in fields(kind):
        hint = hints[field.name]
        if is_part(hint):
            yield from _walk(hint, f"{prefix}{field.name}.")
        else:
            text = texts.get(field.name, "")
            yield Setting(prefix + field.name, hint, _default(field), text, unit_of(hint))


def _default(field: Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


@cache
def _hints(kind: type) -> Mapping[str, Any]:
    return get_type_hints(kind, include_extras=True)


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


def summary_of(kind: type, part: str) -> str:
    """The first line of the docstring of a part, e.g. ``train``, of a settings dataclass."""
    for name in part.split("."):
        kind = _hints(kind)[name]
    return (kind.__doc__ or "").strip().splitlines()[0]


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
        if is_part(hint):
            if not isinstance(value, hint):
                got = type(value).__name__
                raise invalid(f"{kind.__name__}.{name}", f"expected {hint.__name__}, got {got}")
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
        Names that fields accept beyond their types, by path.
    old_names : mapping of str to str, optional
        Current paths of fields that were renamed, by their old paths.
    complete : bool
        Whether the document must name every field.

    Raises
    ------
    UsageError
        ``config-invalid``, naming the field, what is expected and what was given.
    """
    current = rename(document, old_names or {})
    known = settings_of(cast(type, type(base)))
    return cast(Kind, _read(base, current, "", choices or {}, complete, known))


def _read(
    base: Any,
    document: Any,
    prefix: str,
    choices: Choices,
    complete: bool,
    known: Collection[str],
) -> Any:
    kind: type = type(base)
    hints = _hints(kind)
    if not isinstance(document, Mapping):
        raise invalid(prefix.rstrip("."), f"expected a table of settings, got {shown(document)}")
    if complete and (missing := [name for name in hints if name not in document]):
        raise invalid(prefix + missing[0], "is missing")
    values = {}
    for name, value in document.items():
        path = f"{prefix}{name}"
        if name not in hints:
            raise unknown(path, known)
        if is_part(hints[name]):
            part = getattr(base, name)
            values[name] = _read(part, value, f"{path}.", choices, complete, known)
        else:
            values[name] = convert(value, hints[name], path, choices.get(path))
    changed = {field.name: getattr(base, field.name) for field in fields(base)} | values
    try:
        return kind(**changed)
    except UsageError as error:
        raise invalid(prefix.rstrip("."), error.detail) from None


def rename(document: Any, old_names: OldNames) -> Any:
    """A copy of a document in which fields with old names have those of today.

    Raises
    ------
    UsageError
        ``config-invalid`` where a field is named by both.
    """
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
                    raise invalid(new, f"is given twice, also by its old name {old}")
                inner[today] = inner.pop(name)
    return found


def unknown(path: str, known: Collection[str]) -> UsageError:
    """The error of a name that is none of those known, with the nearest of them."""
    name = path.rpartition(".")[2]
    same = [one for one in known if one.rpartition(".")[2] == name]
    near = same or get_close_matches(path, known, 1, 0.5)
    return invalid(path, f"no such setting{f'; did you mean {near[0]}?' if near else ''}")
