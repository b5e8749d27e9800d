"""Settings on a command line: ``--config FILE``, ``--set PART.FIELD=VALUE``, flags of their own.

All three name fields of one settings dataclass, and values are checked in one way, whichever they
come from. A preset comes first, then the file; flags and ``--set`` come last, in the order given.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from presentation.arguments import parse_text
from presentation.setting_types import is_kind, literals
from presentation.settings import (
    Choices,
    OldNames,
    Setting,
    read_settings,
    rename,
    settings_of,
    summary_of,
    unknown,
)
from storage_schemas.errors import UsageError, reason_of

Kind = TypeVar("Kind")

Reader = Callable[[Any], Any]
"""Makes the value of a field of what a user gave for it."""


@dataclass(frozen=True)
class SettingFlags:
    """The flags of one settings dataclass.

    Parameters
    ----------
    kind : type
        Settings dataclass, from whose types and docstrings the help is made.
    flags : mapping of str to str
        Paths of the fields that have a flag of their own, by flag.
    old_flags : mapping of str to str
        Paths by flags of earlier versions, which help does not show.
    old_names : mapping of str to str
        Current paths of fields that were renamed, by their old paths.
    choices : mapping of str to collection of str
        Names that fields accept beyond their types, by path.
    readers : mapping of str to callable
        Readers of fields that have one, by path.
    metavars : mapping of str to str
        Names of values in the help, by path, where the unit is not enough.
    """

    kind: type
    flags: Mapping[str, str]
    old_flags: Mapping[str, str] = field(default_factory=dict)
    old_names: OldNames = field(default_factory=dict)
    choices: Choices = field(default_factory=dict)
    readers: Mapping[str, Reader] = field(default_factory=dict)
    metavars: Mapping[str, str] = field(default_factory=dict)

    def add_to(self, command: argparse.ArgumentParser) -> None:
        """Add ``--config``, ``--set`` and the flags of the fields to a command."""
        group = command.add_argument_group(
            "settings", "Values of --set and of flags replace those of --config."
        )
        group.add_argument(
            "--config",
            type=Path,
            metavar="FILE",
            help="read settings from a TOML file, or from the run.json of an earlier run",
        )
        group.add_argument(
            "--set",
            action=_Assign,
            dest="settings",
            default=[],
            metavar="FIELD=VALUE",
            help="set any field by its name, e.g. PART.FIELD=VALUE; may be repeated",
        )
        groups = {"": group}
        named = set(self.flags.values())
        known = settings_of(self.kind)
        for path in known:
            part = path.rpartition(".")[0]
            if part not in groups:
                groups[part] = command.add_argument_group(part)
        for part, own in groups.items():
            rest = [p for p in known if p.rpartition(".")[0] == part and p not in named]
            texts = [summary_of(self.kind, part)] if part else [own.description or ""]
            if rest:
                texts.append(f"With --set: {', '.join(rest)}.")
            own.description = " ".join(texts).replace("%", "%%")
        for flag, path in self.flags.items():
            self._add(groups[path.rpartition(".")[0]], flag, known[path])
        for flag, path in self.old_flags.items():
            self._add(groups[path.rpartition(".")[0]], flag, known[path], hidden=True)

    def _add(self, group: Any, flag: str, setting: Setting, *, hidden: bool = False) -> None:
        text = argparse.SUPPRESS if hidden else self._help(setting)
        shared = {"dest": "settings", "default": [], "help": text}
        if is_kind(setting.hint, bool):
            switch = (flag, f"--no-{flag.removeprefix('--')}")
            group.add_argument(*switch, action=_Switch, path=setting.path, nargs=0, **shared)
            return
        names = self.choices.get(setting.path) or literals(setting.hint)
        metavar = f"{{{','.join(names)}}}" if names else (setting.unit or "value").upper()
        metavar = self.metavars.get(setting.path, metavar)
        group.add_argument(flag, action=_Value, path=setting.path, metavar=metavar, **shared)

    def _help(self, setting: Setting) -> str:
        text = setting.text.partition(". ")[0].rstrip(".")
        if not is_kind(setting.hint, bool):
            text += f" (default: {_shown(setting.default)})"
        return text.replace("`", "").replace("%", "%%")

    def read(self, options: argparse.Namespace, base: Kind) -> Kind:
        """The settings that a command was given.

        Parameters
        ----------
        options : Namespace
            What a parser with these flags read.
        base : dataclass instance
            Settings where nothing is given: those of a preset.

        Raises
        ------
        UsageError
            ``config-invalid``, naming the field, what is expected and what was given.
        """
        found = base if options.config is None else self.read_file(options.config, base)
        given: dict[str, Any] = {}
        known = settings_of(self.kind)
        for name, text in options.settings:
            path = self.old_names.get(name, name)
            if path not in known:
                raise unknown(path, known)
            *parts, last = path.split(".")
            inner = given
            for part in parts:
                inner = inner.setdefault(part, {})
            inner[last] = text if path in self.readers else parse_text(text, known[path].hint)
        return self._apply(found, given)

    def read_file(self, path: Path, base: Kind) -> Kind:
        """The settings with the values of a file in the place of those of `base`.

        Parameters
        ----------
        path : Path
            TOML file, or the ``run.json`` of a run.
        base : dataclass instance
            Settings that the file leaves out.

        Raises
        ------
        UsageError
            ``config-invalid``, naming the file and the field.
        """
        document = settings_in(read_document(path))
        try:
            return self._apply(base, rename(document, self.old_names))
        except UsageError as error:
            raise UsageError(error.kind, error.detail, key=str(path)) from None

    def _apply(self, base: Kind, document: Any) -> Kind:
        for path, reader in self.readers.items():
            *parts, name = path.split(".")
            inner: Any = document
            for part in parts:
                inner = inner.get(part, {}) if isinstance(inner, Mapping) else {}
            if isinstance(inner, dict) and name in inner:
                inner[name] = reader(inner[name])
        return read_settings(base, document, choices=self.choices)


def flags_of(*paths: str) -> dict[str, str]:
    """Flags named by fields: ``--batch-size`` of ``train.batch_size``."""
    return {f"--{path.rpartition('.')[2].replace('_', '-')}": path for path in paths}


class _Value(argparse.Action):
    """Notes the path of a field, and the text that was given for it."""

    def __init__(self, *arguments: Any, path: str = "", **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.path = path

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        self._note(namespace, self.path, values)

    def _note(self, namespace: argparse.Namespace, path: str, text: str) -> None:
        namespace.settings = [*namespace.settings, (path, text)]


class _Switch(_Value):
    """Notes that a field was switched on, or off by ``--no-...``."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        off = option_string == self.option_strings[1]
        self._note(namespace, self.path, "false" if off else "true")


class _Assign(_Value):
    """Notes the path and the text of ``PATH=TEXT``."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        path, equals, text = values.partition("=")
        if not equals:
            raise argparse.ArgumentError(self, f"expected FIELD=VALUE, got {values!r}")
        self._note(namespace, path.strip(), text.strip())


def read_document(path: Path) -> dict[str, Any]:
    """What a TOML or JSON file holds.

    Raises
    ------
    UsageError
        ``config-invalid`` where it cannot be read, or holds no such thing.
    """
    import tomllib

    try:
        text = path.read_text(encoding="utf-8")
        document = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:
        reason = f"cannot be read: {reason_of(error)}"
        raise UsageError("config-invalid", reason, key=str(path)) from None
    if not isinstance(document, dict):
        raise UsageError("config-invalid", "expected a table of settings", key=str(path))
    return document


def settings_in(document: dict[str, Any]) -> Any:
    """The settings in a configuration file, or in the ``run.json`` of a run."""
    return document.get("config", document)


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value)
