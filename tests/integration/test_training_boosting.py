"""The round loop when rounds are rejected, killed, or cannot be written."""

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from storage_schemas.errors import RunError
from tests.runs import SETTINGS, lines_of, same, weights_of
from training.cli import main
from training.data import crop_buffer as buffer
from training.models.kinds import SLICE
from training.optimization.trainer import RoundWork, Trained
from training.rounds import boosting
from training.rounds import plan as planning
from training.rounds.candidates import Decision, copy_weights, decide

Captured = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch


def train(store: Path, run: Path, *more: str) -> int:
    return main(["boost", str(store), str(run), *SETTINGS, *more])


@pytest.fixture(scope="module")
def store(phantom: tuple[Path, Path]) -> Path:
    return phantom[1]


def test_the_guard_loss_never_rises_and_follows_the_decisions(whole: Path) -> None:
    history = lines_of(whole)
    incumbent, loss = 0, math.inf
    for line in history:
        assert line["accepted"] == (line["incumbent"] == line["round"])
        if line["accepted"]:
            assert line["guard_loss"] == min(line["candidates"].values())
            assert line["gain"] is None or line["gain"] > line["gain_error"]
        else:
            assert line["gain"] <= line["gain_error"] or line["guard_loss"] == loss
            assert (line["incumbent"], line["guard_loss"]) == (incumbent, loss)
        assert line["guard_loss"] <= loss
        incumbent, loss = line["incumbent"], line["guard_loss"]
    assert len(history) == 3
    assert set(history[0]["candidates"]) == {"raw", "average"}
    assert set(history[1]["candidates"]) == {"raw", "average", "step 0.5"}
    assert same(weights_of(whole / "model"), weights_of(whole / "rounds" / f"{incumbent:02}"))
    accepted = [f"{line['round']:02}" for line in history if line["accepted"]]
    assert sorted(path.name for path in (whole / "rounds").iterdir()) == accepted


def test_replayed_patients_are_earlier_training_patients(whole: Path) -> None:
    plans = json.loads((whole / "rounds.json").read_text())
    splits = json.loads((whole / "splits.json").read_text())
    assert plans[0]["replay"] == []
    for number, plan in enumerate(plans):
        earlier = {study for other in plans[:number] for study in other["studies"]}
        assert set(plan["replay"]) <= earlier
        assert {*plan["studies"], *plan["replay"]} <= set(splits["train"])
    assert any(plan["replay"] for plan in plans)


def test_a_finished_run_leaves_curves_and_no_checkpoint(whole: Path) -> None:
    names = {path.name for path in whole.iterdir()}
    assert not [name for name in names if name.startswith((".", "voxels-", "round."))]
    assert list((whole / "tensorboard").glob("events.*"))


@pytest.fixture
def starts(monkeypatch: Patch) -> list[dict[str, Tensor]]:
    """The weights that each round started from."""
    found: list[dict[str, Tensor]] = []
    true = boosting._train

    def spy(plan: Any, model: Any, *more: Any) -> Any:
        found.append(copy_weights(model))
        return true(plan, model, *more)

    monkeypatch.setattr(boosting, "_train", spy)
    return found


def test_a_refused_round_is_rolled_back_as_if_it_had_not_been(
    store: Path, tmp_path: Path, monkeypatch: Patch, starts: list[dict[str, Tensor]]
) -> None:
    decisions = iter([True, False, True])

    def script(*arguments: Any, **more: Any) -> Decision:
        found = decide(*arguments, **more)
        return replace(found, chosen=found.best if next(decisions) else None)

    monkeypatch.setattr(boosting, "decide", script)
    run = tmp_path / "run"
    assert train(store, run) == 0
    assert [line["incumbent"] for line in lines_of(run)] == [1, 1, 3]
    assert sorted(path.name for path in (run / "rounds").iterdir()) == ["01", "03"]
    assert same(starts[1], weights_of(run / "rounds" / "01"))
    assert same(starts[2], weights_of(run / "rounds" / "01"))
    stack = json.loads((run / "stack.json").read_text())
    assert set(stack["rounds"]) <= {1, 3}
    assert sum(stack["weights"]) == pytest.approx(1)


def spoil(harm: Callable[[Any], None]) -> Any:
    """A kind whose second round goes wrong."""

    def train(model: Any, inputs: Any, crops: Any, config: Any, work: RoundWork) -> Trained:
        trained = SLICE.train(model, inputs, crops, config, work)
        if work.number == 2:
            harm(model)
            trained = replace(trained, ema=None)
        return trained

    return {"slice": replace(SLICE, train=train)}


def diverge(model: Any) -> None:
    raise RunError("training-diverged", "the loss is nan at step 3")


@torch.no_grad()
def lose_numbers(model: Any) -> None:
    next(model.classifier.parameters()).fill_(math.nan)


@pytest.mark.parametrize("harm", [diverge, lose_numbers])
def test_a_round_that_diverges_is_rolled_back_and_the_next_is_trained(
    store: Path,
    tmp_path: Path,
    monkeypatch: Patch,
    starts: list[dict[str, Tensor]],
    harm: Callable[[Any], None],
) -> None:
    monkeypatch.setattr(planning, "KINDS", spoil(harm))
    run = tmp_path / "run"
    assert train(store, run) == 0
    second = lines_of(run)[1]
    assert (second["accepted"], second["candidates"], second["incumbent"]) == (False, {}, 1)
    assert same(starts[2], weights_of(run / "rounds" / "01"))
    assert all(tensor.isfinite().all() for tensor in weights_of(run / "model").values())


@pytest.mark.parametrize("harm", [diverge, lose_numbers])
def test_without_the_guard_a_round_that_diverges_stops_and_keeps_the_first(
    store: Path,
    tmp_path: Path,
    monkeypatch: Patch,
    capsys: Captured,
    harm: Callable[[Any], None],
) -> None:
    monkeypatch.setattr(planning, "KINDS", spoil(harm))
    run = tmp_path / "run"
    assert train(store, run, "--recipe", "seed") == 3
    assert "[training-diverged]" in capsys.readouterr().err
    assert [line["round"] for line in lines_of(run)] == [1]
    assert all(tensor.isfinite().all() for tensor in weights_of(run / "rounds" / "01").values())


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def after(calls: int, true: Callable[..., Any]) -> Callable[..., Any]:
    """The disk is full from that call on."""
    left = iter(range(calls))

    def call(*arguments: Any, **more: Any) -> Any:
        return full() if next(left, None) is None else true(*arguments, **more)

    return call


FULL: dict[str, tuple[Any, str, int]] = {
    "while weights are saved": (PreTrainedModel, "save_pretrained", 1),
    "while a round is read": (buffer, "_reserve", 2),
    "while the model is offered": (shutil, "copytree", 0),
}


@pytest.mark.parametrize("when", FULL)
def test_a_full_disk_is_named_and_the_run_resumes_to_the_same_model(
    store: Path, whole: Path, tmp_path: Path, capsys: Captured, when: str
) -> None:
    where, name, calls = FULL[when]
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(where, name, after(calls, getattr(where, name)))
        assert train(store, run) == 3
    told = capsys.readouterr().err
    assert "No space left on device" in told
    assert "[run-unwritable]" in told
    assert "Traceback" not in told
    left = [path.name for path in run.rglob("*") if "partial" in path.name]
    assert left == []
    for line in lines_of(run) if (run / "rounds.jsonl").exists() else []:
        if line["accepted"]:
            number = f"{line['round']:02}"
            assert same(weights_of(run / "rounds" / number), weights_of(whole / "rounds" / number))
    assert train(store, run) == 0
    assert same(weights_of(run / "model"), weights_of(whole / "model"))
    assert not list(run.glob(".*"))


def test_a_killed_process_resumes_to_the_same_model(
    store: Path, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = [Path(sys.executable).with_name("cspine-training"), "boost", store, run, *SETTINGS]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not (run / "round.safetensors").exists():
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert (run / "round.safetensors").exists()
    assert train(store, run) == 0
    assert same(weights_of(run / "model"), weights_of(whole / "model"))
    names = ("train_loss", "seconds")
    found, expected = (
        [{k: v for k, v in line.items() if k not in names} for line in lines_of(place)]
        for place in (run, whole)
    )
    assert found == expected


def test_a_starting_model_trained_on_fractures_is_protected(
    store: Path, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    more = ["--model", str(whole / "model"), "--learning-rate", "1e-12", "--rounds", "2"]
    assert train(store, run, *more) == 0
    history = lines_of(run)
    assert [line["incumbent"] for line in history] == [0, 0]
    assert history[0]["guard_loss"] == pytest.approx(lines_of(whole)[-1]["guard_loss"])
    assert same(weights_of(run / "model"), weights_of(whole / "model"))


def test_joint_is_one_round_of_all_patients_with_the_steps_of_all(
    store: Path, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert train(store, run, "--recipe", "joint", "--epochs", "0.5") == 0
    (plan,) = json.loads((run / "rounds.json").read_text())
    plans = json.loads((whole / "rounds.json").read_text())
    assert sorted(plan["studies"]) == sorted(s for other in plans for s in other["studies"])
    assert [line["accepted"] for line in lines_of(run)] == [True]
    assert not (run / "stack.json").exists()


def test_the_ensemble_is_evaluated_beside_the_model_and_predicts(
    store: Path, tmp_path: Path, capsys: Captured
) -> None:
    run = tmp_path / "run"
    assert train(store, run, "--recipe", "seed", "--rounds", "2", "--learning-rate", "3e-3") == 0
    stack = json.loads((run / "stack.json").read_text())
    (run / "stack.json").write_text(json.dumps({**stack, "rounds": [1, 2], "weights": [0.4, 0.6]}))
    capsys.readouterr()
    assert main(["evaluate", str(run), str(store), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["losses"]) > {"model", "mixture of rounds", "best constant"}
    assert found["losses"]["model"]["all"] != found["losses"]["mixture of rounds"]["all"]
    assert set(found["figures"]["mixture of rounds"]["C2"]) == {
        *("auc", "average_precision", "sensitivity", "brier"),
    }
    arguments = ["predict", str(run), str(store), str(tmp_path / "p.csv"), "--stack"]
    assert main(arguments) == 0
    (run / "stack.json").unlink()
    capsys.readouterr()
    assert main(arguments) == 2
    assert "[config-invalid]" in capsys.readouterr().err
