"""What tests ask of a command line."""

import argparse
import re
import shlex
from collections.abc import Callable, Sequence

Main = Callable[[Sequence[str] | None], int]
Parser = Callable[[], argparse.ArgumentParser]


def commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    (commands,) = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(commands.choices)


def flags_of(parser: argparse.ArgumentParser) -> dict[str, set[str]]:
    """The arguments and flags of each command that its help shows."""
    return {
        name: {
            flag
            for action in command._actions
            if action.help != argparse.SUPPRESS
            for flag in action.option_strings or [str(action.metavar)]
        }
        - {"-h", "--help"}
        for name, command in commands_of(parser).items()
    }


def misfits_of(parser: Parser) -> list[str]:
    """Flags without a text or a unit, and commands without an example that parses."""
    found = []
    for name, command in commands_of(parser()).items():
        for action in command._actions:
            flag = f"{name} {'/'.join(action.option_strings) or action.dest}"
            if not action.help:
                found.append(f"{flag}: no text")
            elif "%(" in action.help or "`" in action.help:
                found.append(f"{flag}: {action.help}")
            if action.nargs != 0 and not (action.metavar or action.choices):
                found.append(f"{flag}: no unit")
        example = re.fullmatch(r"example:\n  (\S+) (.*)", command.epilog or "")
        if not example or example[1] != parser().prog:
            found.append(f"{name}: no example")
        else:
            parser().parse_args(shlex.split(example[2]))
    return found


def exit_code(main: Main, line: str) -> int:
    """How a command ends, whether its parser or the command itself ends it."""
    try:
        return main(shlex.split(line))
    except SystemExit as ended:
        return int(ended.code or 0)
