"""How a command line ends: one line for whoever used it wrongly, one for whatever went wrong.

Exit codes: 0 done; 1 something is quarantined, missing or damaged; 2 wrong usage or configuration;
3 not finished.
"""

import argparse
import json
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import NoReturn

from presentation.progress import show_table
from storage_schemas.errors import CspineError


class OneLineParser(argparse.ArgumentParser):
    """A parser that answers wrong usage with one line instead of all that could have been right."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where to look; ends with code 2."""
        self.exit(2, f"{self.prog.split()[0]}: {message}; see {self.prog} --help\n")


def add_shared_flags(commands: "argparse._SubParsersAction[OneLineParser]") -> None:
    """Give every command the flags that all have: ``--json`` and ``--verbose``."""
    for command in commands.choices.values():
        command.add_argument("--json", action="store_true", help="print one summary object last")
        command.add_argument("--verbose", action="store_true", help="show tracebacks")


def run_command(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None, *, stopped: str
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
    """
    options = parser.parse_args(arguments)
    try:
        return int(options.command(options))
    except CspineError as error:
        line, code = str(error), error.exit_code
        _trace(options)
    except KeyboardInterrupt:
        line, code = f"stopped; {stopped}", 3
    except Exception as error:  # noqa: BLE001  # a user is told in one line, whatever it is
        what = " ".join(f"{type(error).__name__}: {error}".split())
        line, code = f"unexpected {what}; --verbose shows where", 3
        _trace(options)
    print(f"{parser.prog}: {line}", file=sys.stderr)
    return code


def _trace(options: argparse.Namespace) -> None:
    if options.verbose:
        traceback.print_exc()


def tell_summary(
    stage: str,
    rows: Sequence[tuple[str, object]],
    options: argparse.Namespace,
    made: Mapping[str, object] | None = None,
) -> None:
    """Say on standard output what a command did: a table, or one JSON object where asked.

    Parameters
    ----------
    stage : str
    rows : sequence of (str, object)
    options : Namespace
        With ``json``.
    made : mapping of str to object, optional
        The files that were written, by what they are; each is a line of its own below the table.
    """
    written = {name: str(path) for name, path in (made or {}).items()}
    if options.json:
        print(json.dumps({"stage": stage} | dict(rows) | written))
        return
    show_table(stage, rows)
    for name, path in written.items():
        print(f"{name.replace('_', ' ')}: {path}")
