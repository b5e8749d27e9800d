"""The command lines are a contract: a flag that appears or goes is a decision, made here."""

from importlib.metadata import version

import pytest

from pipeline import cli as pipeline_cli
from tests.commandlines import exit_code, flags_of, misfits_of

PIPELINE = {
    "phantom": "OUT --studies --seed --size --slices --faults",
    "inspect": "SOURCE --layout --series",
    "run": "SOURCE STORE --layout --series --series-table --masks --mask-labels --only-masked "
    "--localizer --vertebrae --margin --strict --no-strict --targets --labels "
    "--boxes --overall --limit --hash-keys --no-hash-keys --repair --memory --study-seconds "
    "--performance-report --workers --serial --scheduler --scheduler-file --insecure "
    "--config --set",
    "verify": "STORE --source --layout --cross-check",
    "catalog": "STORE --targets --labels --boxes --overall",
    "report": "STORE OUT.html --gallery --pages --source",
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


def test_every_flag_has_a_text_and_a_unit_and_every_command_an_example_that_parses() -> None:
    assert misfits_of(pipeline_cli.parser) == []


def test_the_version_is_that_of_the_distribution(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        pipeline_cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"cspine-pipeline {version('cspine')}\n"


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
        "run a b --margin wide",
        "run a b --mask-labels mine",
        "run a b --set max_bad_share=2",
        "run a b --set nonsense=2",
        "run a b --set nonsense",
        "run a b --config missing.toml",
        "verify a --cross-check 2",
        "phantom a --seed -1",
        "phantom a --studies 0",
        "report a b --gallery -1",
    ],
)
def test_wrong_usage_is_code_2_and_says_why(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(pipeline_cli.main, line) == 2
    (why,) = capsys.readouterr().err.splitlines()
    assert why.startswith("cspine-pipeline: ")
    assert "[config-invalid]" in why
    assert "invalid _" not in why, "the name of a private function tells a user nothing"
