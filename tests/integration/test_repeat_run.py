"""A run is repeated from the settings that it wrote, and from Python as from the shell."""

from pathlib import Path

import training
from tests.runs import lines_of, same, weights_of
from training.cli import main


def test_the_run_json_of_a_run_repeats_it_to_the_bit(
    phantom: tuple[Path, Path], whole: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again"
    assert main(["boost", str(phantom[1]), str(again), "--config", str(whole / "run.json")]) == 0
    assert (again / "run.json").read_bytes() == (whole / "run.json").read_bytes()
    assert same(weights_of(again / "model"), weights_of(whole / "model"))
    losses = [[line["guard_loss"] for line in lines_of(run)] for run in (again, whole)]
    assert losses[0] == losses[1]


def test_the_functions_of_the_package_do_what_the_commands_do(
    phantom: tuple[Path, Path], whole: Path, tmp_path: Path
) -> None:
    config = training.read_config(whole / "run.json")
    run = training.boost(str(phantom[1]), tmp_path / "run", config)
    assert same(weights_of(run.model), weights_of(whole / "model"))
    evaluation = training.evaluate(run.path, str(phantom[1]))
    assert len(evaluation.exams) == evaluation.studies > 0
    assert run.has("evaluation.json")
    table, other = tmp_path / "python.csv", tmp_path / "shell.csv"
    predictions = training.predict(run.path, str(phantom[1]), table)
    assert main(["predict", str(run.path), str(phantom[1]), str(other)]) == 0
    assert table.read_bytes() == other.read_bytes()
    assert len(table.read_text().splitlines()) - 1 == len(predictions.studies) == 20
