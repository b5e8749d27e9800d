"""The command lines are a contract: a flag that appears or goes is a decision, made here."""

import argparse

import pytest

from pipeline import cli as pipeline_cli

PIPELINE = {
    "phantom": "OUT --studies --seed --size --slices --faults",
    "inspect": "SOURCE --layout",
    "run": "SOURCE STORE --layout --masks --mask-labels --only-masked "
    "--localizer --vertebrae --margin --strict --labels "
    "--boxes --limit --hash-keys --repair --memory --study-seconds --performance-report "
    "--workers --serial --scheduler --scheduler-file --insecure",
    "verify": "STORE --source --layout --cross-check",
    "catalog": "STORE --labels --boxes",
    "report": "STORE OUT.html --gallery",
}


def flags_of(parser: argparse.ArgumentParser) -> dict[str, set[str]]:
    (commands,) = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return {
        name: {
            action.option_strings[-1] if action.option_strings else str(action.metavar)
            for action in command._actions
        }
        - {"--help"}
        for name, command in commands.choices.items()
    }


def test_the_pipelines_flags_are_these() -> None:
    found = flags_of(pipeline_cli.parser())
    assert found == {
        name: {*flags.split(), "--json", "--verbose"} for name, flags in PIPELINE.items()
    }


@pytest.mark.parametrize("command", PIPELINE)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        pipeline_cli.main([command, "--help"])
    assert ended.value.code == 0
    assert command in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [[], ["nonsense"], ["run"], ["run", "a", "b", "--limit", "0"]]
)
def test_wrong_usage_is_code_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        pipeline_cli.main(arguments)
    assert ended.value.code == 2
