"""The command line of training is a contract, like the pipeline's."""

import json
import shlex
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from tests.commandlines import exit_code, flags_of, misfits_of
from training import api
from training.cli import main, parser
from training.config import PRESETS, RunConfig
from training.flags import RUN_SETTINGS
from training.report import page as report
from training.rounds.recipes import RECIPES
from training.runs import RunFolder

TRAINING = {
    "boost": "STORE RUN --recipe --model --preset --seed --rounds --slices-per-round --epochs "
    "--order --batch-size --accumulation --learning-rate --fractured-share --weak-target "
    "--checkpoint-steps --replay --rate-fall --layer-decay --ema-window --caution --size --crop-mm "
    "--trim-mm --neighbours --mask --no-mask --positions --sampled --pooling --frozen --no-frozen "
    "--head-epochs --folds --patch --width --depth --heads --guard --calibration --test "
    "--config --set",
    "localizer": "STORE OUT.onnx --preset --size --steps --batch-size --learning-rate --folds "
    "--fold --margin-mm --seed --config --set",
    "blend": "OUT RUN --store",
    "evaluate": "RUN STORE",
    "predict": "RUN STORE OUT --submission --stack --explain",
    "report": "RUN OUT.html",
}


class Captured(BaseException):
    """Ends a command where its settings are known, before anything is done."""


def settings_given(monkeypatch: pytest.MonkeyPatch, line: str) -> tuple[RunConfig, Any]:
    """The settings and the checkpoint that a command line of ``boost`` stands for."""
    found: list[tuple[RunConfig, Any]] = []

    def capture(store: str, run: Path, config: RunConfig, *, model: Any) -> None:
        found.append((config, model))
        raise Captured

    monkeypatch.setattr(api, "boost", capture)
    with pytest.raises(Captured):
        main(["boost", "STORE", "RUN", *shlex.split(line)])
    return found[0]


def test_the_trainings_flags_are_these() -> None:
    assert flags_of(parser()) == {
        name: {*flags.split(), "--json", "--verbose"} for name, flags in TRAINING.items()
    }


@pytest.mark.parametrize("command", TRAINING)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert command in capsys.readouterr().out


def test_every_flag_has_a_text_and_a_unit_and_every_command_an_example_that_parses() -> None:
    assert misfits_of(parser) == []


def test_the_version_is_that_of_the_distribution(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(main, "--version") == 0
    assert capsys.readouterr().out == f"cspine-training {version('cspine')}\n"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "required: COMMAND"),
        ("nonsense", "nonsense"),
        ("boost store", "required: RUN"),
        ("boost store run --preset huge", "huge"),
        ("boost store run --recipe magic", "recipe: expected one of boost, seed, joint, sequence"),
        ("boost store run --epochs many", 'train.epochs: expected a number above 0, got "many"'),
        ("boost store run --folds -1", "split.folds: expected a whole number at least 0, got -1"),
        ("boost store run --folds 1", "split: fold 0 of 1"),
        ("boost store run --seed -1", "seed: expected a whole number at least 0"),
        ("boost store run --set train.epochs=three", "train.epochs: expected a number above 0"),
        ("boost store run --set epochs=3", "epochs: no such setting; did you mean train.epochs?"),
        ("boost store run --set train.epoch=3", "no such setting; did you mean train.epochs?"),
        ("boost store run --set train=3", "train: no such setting"),
        ("boost store run --set train.epochs", "expected FIELD=VALUE"),
        ("boost store run --set augment.noise=loud", "augment.noise: expected a number at least 0"),
        ("boost store run --config missing.toml", "missing.toml: cannot be read"),
        ("predict run store", "required: OUT"),
        ("localizer store", "required: OUT"),
        ("localizer store out.onnx --size big", 'size: expected a whole number, got "big"'),
        ("localizer store out.onnx --size 96", "size: expected 32, 64, 128, got 96"),
        ("localizer store out.onnx --seed -1", "seed: expected a whole number at least 0"),
    ],
)  # fmt: skip
def test_wrong_usage_is_code_2_and_one_line(
    line: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(main, line) == 2
    (why,) = capsys.readouterr().err.splitlines()
    assert why.startswith("cspine-training: ")
    assert "[config-invalid]" in why
    assert said in why


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ('recipe = "magic"', "recipe: expected one of boost, seed, joint, sequence, got"),
        ('recipe = "bost"', "did you mean boost?"),
        ('[train]\nepochs = "three"', 'train.epochs: expected a number above 0, got "three"'),
        ('[augment]\nnoise = "loud"', 'augment.noise: expected a number at least 0, got "loud"'),
        ("[train]\nlearning_rat = 1.0", "did you mean train.learning_rate?"),
        ("train = 3", "train: expected a table of settings, got 3"),
        ("seed = ", "cannot be read: "),
    ],
)
def test_a_wrong_file_is_named_with_the_field(
    tmp_path: Path, toml: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.toml"
    file.write_text(toml)
    assert main(["boost", "store", "run", "--config", str(file)]) == 2
    (why,) = capsys.readouterr().err.splitlines()
    assert why.startswith(f"cspine-training: {file}: ")
    assert "[config-invalid]" in why
    assert said in why


def test_flags_and_set_come_after_the_file_and_the_file_after_the_preset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "run.toml"
    file.write_text("seed = 3\n[train]\nepochs = 7\nrounds = 2\n[inputs]\nwindows = [[0, 9]]\n")
    line = f"--preset demo --set train.rounds=4 --config {file} --seed 5 --set seed=6 --epochs 8"
    config, model = settings_given(monkeypatch, line)
    demo = PRESETS["demo"]
    assert config.seed == 6
    assert (config.train.rounds, config.train.epochs) == (4, 8.0)
    assert config.inputs.windows == ((0.0, 9.0),)
    assert config.train.slices_per_round == demo.train.slices_per_round
    assert config.model == demo.model
    assert model is None


def test_the_settings_of_an_earlier_run_repeat_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = PRESETS["demo"].override({"recipe": "joint", "split": {"folds": 3}})
    document = {"config": config.to_json(), "store": "s3://elsewhere", "start": "/checkpoint"}
    document["config"]["train"]["broken_share"] = document["config"]["train"].pop("fractured_share")
    file = tmp_path / "run.json"
    file.write_text(json.dumps(document))
    found, model = settings_given(monkeypatch, f"--config {file}")
    assert found == config
    assert str(model) == "/checkpoint"
    _, model = settings_given(monkeypatch, f"--config {file} --model other")
    assert str(model) == "other"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("--broken-share 0.2", "--fractured-share 0.2"),
        ("--average 0.5", "--ema-window 0.5"),
        ("--drawn 3", "--sampled 3"),
        ("--set train.broken_share=0.2", "--set train.fractured_share=0.2"),
    ],
)
def test_old_names_mean_what_the_new_ones_mean(
    old: str, new: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert settings_given(monkeypatch, old) == settings_given(monkeypatch, new)
    assert settings_given(monkeypatch, old) != settings_given(monkeypatch, "")


def test_a_recipe_that_is_registered_can_be_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = RECIPES | {"mine": RECIPES["seed"]}  # type: ignore[operator]
    monkeypatch.setitem(RUN_SETTINGS.choices, "recipe", recipes)  # type: ignore[arg-type]
    file = tmp_path / "run.toml"
    file.write_text('recipe = "mine"')
    for line in ("--recipe mine", f"--config {file}", "--set recipe=mine"):
        assert settings_given(monkeypatch, line)[0].recipe == "mine"


@pytest.mark.parametrize("verbose", [False, True])
def test_what_nobody_expected_is_one_line_and_code_3(
    verbose: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(run: RunFolder) -> None:
        raise ValueError("first line\nsecond line")

    monkeypatch.setattr(report, "render_report", fail)
    assert main(["report", "run", "out.html", *["--verbose"] * verbose]) == 3
    told = capsys.readouterr().err
    *trace, line = told.splitlines()
    assert line == (
        "cspine-training: unexpected ValueError: first line second line; --verbose shows where"
    )
    assert ("in fail" in told) == verbose == bool(trace)
