"""The command line of training is a contract, like the pipeline's."""

import pytest

from tests.unit.test_cli_flags import flags_of
from training.cli import main, parser

TRAINING = {
    "boost": "STORE RUN --recipe --model --preset --seed --rounds --slices-per-round --epochs "
    "--order --batch-size --accumulation --learning-rate --broken-share --weak-target "
    "--checkpoint-steps --replay --rate-fall --layer-decay --average --size --crop-mm --trim-mm "
    "--neighbours --mask --positions --drawn --pooling --frozen --head-epochs --folds "
    "--patch --width --depth --heads --guard --calibration --test",
    "localizer": "STORE OUT.onnx --preset --size --steps --batch-size --learning-rate --folds "
    "--fold --margin-mm --seed --json",
    "blend": "OUT RUN --store --json",
    "evaluate": "RUN STORE --json",
    "predict": "RUN STORE OUT --submission --stack --explain",
    "report": "RUN OUT.html",
}


def test_the_trainings_flags_are_these() -> None:
    assert flags_of(parser()) == {
        name: {*flags.split(), "--verbose"} for name, flags in TRAINING.items()
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
def test_wrong_usage_is_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("cspine-training")
