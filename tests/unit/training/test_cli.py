"""The command line of training is a contract, like the pipeline's."""

import pytest

from tests.unit.pipeline.test_cli import flags_of
from training.cli import main, parser
from training.report import page as report
from training.runs import RunFolder

TRAINING = {
    "boost": "STORE RUN --recipe --model --preset --seed --rounds --slices-per-round --epochs "
    "--order --batch-size --accumulation --learning-rate --broken-share --weak-target "
    "--checkpoint-steps --replay --rate-fall --layer-decay --average --caution --size --crop-mm "
    "--trim-mm --neighbours --mask --positions --drawn --pooling --frozen --head-epochs --folds "
    "--patch --width --depth --heads --guard --calibration --test",
    "localizer": "STORE OUT.onnx --preset --size --steps --batch-size --learning-rate --folds "
    "--fold --margin-mm --seed",
    "blend": "OUT RUN --store",
    "evaluate": "RUN STORE",
    "predict": "RUN STORE OUT --submission --stack --explain",
    "report": "RUN OUT.html",
}


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


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["boost", "store"],
        ["boost", "store", "run", "--preset", "huge"],
        ["boost", "store", "run", "--recipe", "magic"],
        ["boost", "store", "run", "--epochs", "many"],
        ["predict", "run", "store"],
        ["localizer", "store"],
        ["localizer", "store", "out.onnx", "--size", "big"],
    ],
)
def test_wrong_usage_is_code_2_and_one_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    (why,) = capsys.readouterr().err.splitlines()
    assert why.startswith("cspine-training: ")


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
