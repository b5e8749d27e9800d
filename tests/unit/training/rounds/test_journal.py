"""The journals of a run."""

import json
from pathlib import Path
from typing import Any

import pytest

from training.rounds.journal import explain_decision, read_curve, summarise
from training.runs import RunFolder


def entry(number: int, **changes: Any) -> dict[str, Any]:
    line = {
        "round": number,
        "slices": 100,
        "steps": 4,
        "best": "raw",
        "gain": 0.02,
        "gain_error": 0.01,
        "accepted": True,
        "incumbent": number,
        "guard_loss": 0.5,
        "guard_best_constant": 0.6,
        "caution": 1.0,
    }
    return line | changes


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, "gain 0.0200 exceeds its standard error 0.0100"),
        ({"gain": None, "gain_error": None}, "first model: no incumbent to compare with"),
        (
            {"accepted": False, "gain": 0.005},
            "gain 0.0050 does not exceed its standard error 0.0100",
        ),
        (
            {"accepted": False},
            "gain 0.0200 exceeds its standard error 0.0100, but no guard loss is lower",
        ),
        (
            {"gain": 0.005, "caution": 0.0},
            "gain 0.0050 does not exceed its standard error 0.0100, but caution is 0",
        ),
        (
            {"accepted": False, "caution": 3.0},
            "gain 0.0200 exceeds its standard error 0.0100, but caution is 3",
        ),
        (
            {"gain": -0.1, "caution": None},
            "gain -0.1000 does not exceed its standard error 0.0100, but every round is accepted",
        ),
        (
            {"accepted": False, "best": None, "gain": None, "gain_error": None},
            "training diverged: no candidate has finite weights",
        ),
    ],
)
def test_every_decision_has_its_reason(changes: dict[str, Any], reason: str) -> None:
    assert explain_decision(entry(2, **changes)) == reason


def write_lines(run: Path, name: str, lines: list[dict[str, Any]]) -> None:
    (run / name).write_text("".join(json.dumps(line) + "\n" for line in lines))


def metric(number: int, step: int, loss: float) -> dict[str, Any]:
    return {"round": number, "step": step, "steps": 4, "loss": loss, "learning_rate": loss / 100}


def test_a_curve_continues_over_rounds_and_drops_repeated_steps(tmp_path: Path) -> None:
    write_lines(tmp_path, "rounds.jsonl", [entry(1), entry(2)])
    killed = [metric(1, 2, 9.0), metric(1, 4, 9.0)]
    again = [metric(1, 2, 3.0), metric(1, 4, 2.0), metric(2, 3, 1.0)]
    write_lines(tmp_path, "metrics.jsonl", [*killed, *again, metric(3, 1, 7.0)])
    curve = read_curve(RunFolder(tmp_path))
    assert curve.steps == (2, 4, 7)
    assert curve.losses == (3.0, 2.0, 1.0)
    assert curve.rates == (0.03, 0.02, 0.01)
    assert curve.ends == (4, 8)


def test_a_run_is_summed_up(tmp_path: Path) -> None:
    write_lines(tmp_path, "rounds.jsonl", [entry(1), entry(2, accepted=False, incumbent=1)])
    (tmp_path / "rounds.json").write_text("[{}, {}, {}]")
    rows = dict(summarise(RunFolder(tmp_path)))
    assert (rows["rounds"], rows["accepted"], rows["slices"]) == ("2 of 3", 1, 200)
    assert (rows["model of round"], rows["guard_loss"]) == (1, "0.5000")
