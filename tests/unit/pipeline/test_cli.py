"""The command lines are a contract: a flag that appears or goes is a decision, made here."""

import argparse

import pytest

from pipeline import cli as pipeline_cli

PIPELINE = {
    "phantom": "OUT --studies --seed --size --slices --faults",
    "inspect": "SOURCE --layout",
    "run": "SOURCE STORE --layout --masks --mask-labels --only-masked "
    "--localizer --vertebrae --margin --strict --targets --labels "
    "--boxes --limit --hash-keys --repair --memory --study-seconds --performance-report "
    "--workers --serial --scheduler --scheduler-file --insecure",
    "verify": "STORE --source --layout --cross-check",
    "catalog": "STORE --targets --labels --boxes",
    "report": "STORE OUT.html --gallery --pages --source",
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
    "line",
    [
        "",
        "nonsense",
        "run",
        "run a b --limit 0",
        "run a b --workers two",
        "run a b --vertebrae C9",
        "run a b --vertebrae ,",
        "run a b --memory lots",
        "run a b --memory 0",
        "run a b --study-seconds -1",
        "run a b --study-seconds nan",
        "verify a --cross-check 2",
        "phantom a --seed -1",
        "report a b --gallery -1",
    ],
)
def test_wrong_usage_is_code_2_and_says_why(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        pipeline_cli.main(line.split())
    assert ended.value.code == 2
    (why,) = capsys.readouterr().err.splitlines()
    assert why.startswith("cspine-pipeline: ")
    assert "invalid _" not in why, "the name of a private function tells a user nothing"
