"""Command lines: commands with an example, and one line for whatever goes wrong.

Exit codes: 0 done; 1 something is quarantined, missing or damaged; 2 wrong usage or configuration;
3 not finished.
"""

import argparse
import json
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from presentation.progress import show_table
from storage_schemas.errors import CspineError, UsageError

OURS = ("pipeline", "training", "presentation", "storage_schemas")

Commands = argparse._SubParsersAction


class OneLineParser(argparse.ArgumentParser):
    """A parser that answers wrong usage with one line instead of the whole usage text."""

    def error(self, message: str) -> NoReturn:
        """Print what is wrong and where to look; ends with code 2."""
        program = self.prog.split()[0]
        self.exit(2, f"{program}: {message} [config-invalid]; see {self.prog} --help\n")


class ExampleFormatter(argparse.HelpFormatter):
    """Help that wraps running text, and keeps the lines of examples."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" in text:
            return "".join(indent + line for line in text.splitlines(keepends=True))
        return super()._fill_text(text, width, indent)


def build_parser(program: str, description: str) -> tuple[OneLineParser, "Commands[OneLineParser]"]:
    """A parser with ``--version``, and the place for its commands."""
    top = OneLineParser(program, description=description)
    top.add_argument("--version", action=_Version, help="print the version and exit")
    return top, top.add_subparsers(required=True, metavar="COMMAND", title="commands")


class _Version(argparse.Action):
    """Prints the version of the installed distribution, which is looked up only then."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:  # noqa: A002
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=help)

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        from importlib.metadata import version

        print(f"{parser.prog} {version('cspine')}")
        parser.exit()


def add_command(
    commands: "Commands[OneLineParser]",
    name: str,
    run: Callable[[argparse.Namespace], int],
    summary: str,
    example: str,
) -> argparse.ArgumentParser:
    """Add a command, with the flags ``--json`` and ``--verbose`` that all commands have.

    Parameters
    ----------
    commands : Commands
        Collection of the commands, which `build_parser` returns.
    name : str
        Name of the command.
    run : callable
        Takes the options and returns the exit code.
    summary : str
        Summary of the command for the help, one line.
    example : str
        Arguments of an example, without the names of the program and the command.
    """
    command = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        formatter_class=ExampleFormatter,
    )
    command.epilog = f"example:\n  {command.prog} {example}"
    command.set_defaults(command=run)
    group = command.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="print one JSON object as the summary")
    group.add_argument("--verbose", action="store_true", help="show tracebacks")
    return command


def run_command(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None,
    *,
    stopped: str,
    extra: str,
) -> int:
    """Run the command that `arguments` name and return its exit code; every error is one line.

    Parameters
    ----------
    parser : ArgumentParser
        Sets ``command``, what is called with the options, and ``verbose``.
    arguments : sequence of str, or None
        None takes those of the process.
    stopped : str
        What is left when a user stops a command.
    extra : str
        Extra of the distribution that the commands need.
    """
    options = parser.parse_args(arguments)
    try:
        return int(options.command(options))
    except CspineError as error:
        line, code = str(error), error.exit_code
        _trace(options)
    except KeyboardInterrupt:
        line, code = f"stopped; {stopped}", 3
    except Exception as error:  # noqa: BLE001  # any error is one line
        if missing := _missing_package(error):
            needed = missing_extra(missing, extra)
            line, code = str(needed), needed.exit_code
        else:
            what = " ".join(f"{type(error).__name__}: {error}".split())
            line, code = f"unexpected {what}; --verbose shows where", 3
        _trace(options)
    print(f"{parser.prog}: {line}", file=sys.stderr)
    return code


def _missing_package(error: Exception) -> str:
    """The package of others that an import did not find; empty where that is not the error."""
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return ""
    package = error.name.partition(".")[0]
    return "" if package in OURS else package


def missing_extra(package: str, extra: str) -> UsageError:
    """The error of a command whose extra is not installed."""
    return UsageError(
        "dependency-missing", f"{package} is not installed: pip install 'cspine[{extra}]'"
    )


def _trace(options: argparse.Namespace) -> None:
    if options.verbose:
        traceback.print_exc()


def tell_summary(
    stage: str,
    rows: Sequence[tuple[str, object]],
    options: argparse.Namespace,
    made: Mapping[str, object] | None = None,
) -> None:
    """Print what a command did on standard output: a table, or one JSON object where asked.

    Parameters
    ----------
    stage : str
        Name of the command.
    rows : sequence of (str, object)
        Names and values of the summary.
    options : Namespace
        Options with ``json``.
    made : mapping of str to object, optional
        Paths of the files that were written, by what they are; each is a line below the table.
    """
    written = {name: str(path) for name, path in (made or {}).items()}
    if options.json:
        print(json.dumps({"stage": stage} | dict(rows) | written))
        return
    show_table(stage, rows)
    for name, path in written.items():
        print(f"{name.replace('_', ' ')}: {path}")
