"""Starting weights of a round: the last weights of an accepted round, or the incumbent."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from tests.runs import SETTINGS, lines_of, same, weights_of
from training.cli import main
from training.optimization.checkpoints import read_last_weights
from training.rounds import boosting
from training.rounds.candidates import (
    RAW,
    CandidateWeights,
    Decision,
    copy_weights,
    decide,
    list_candidates,
)

Captured = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch
Ends = list[tuple[dict[str, Tensor], dict[str, Tensor]]]
"""The weights before and after the training of each round."""


class Stopped(BaseException):
    """As a signal would."""


def train(store: Path, run: Path) -> int:
    """An EMA over a full round, which differs from the weights even in a short one."""
    return main(["boost", str(store), str(run), *SETTINGS, "--average", "1"])


@pytest.fixture
def store(phantom: tuple[Path, Path]) -> Path:
    return phantom[1]


@pytest.fixture
def ends(monkeypatch: Patch) -> Ends:
    found: Ends = []
    true = boosting._train

    def spy(plan: Any, model: Any, *more: Any) -> Any:
        before = copy_weights(model)
        trained = true(plan, model, *more)
        found.append((before, copy_weights(model)))
        return trained

    monkeypatch.setattr(boosting, "_train", spy)
    return found


@pytest.fixture(autouse=True)
def only_interpolations_are_candidates(monkeypatch: Patch) -> None:
    def mixtures(*arguments: Any) -> Iterator[CandidateWeights]:
        return (found for found in list_candidates(*arguments) if found.name != RAW)

    monkeypatch.setattr(boosting, "list_candidates", mixtures)


def accept(monkeypatch: Patch, *wanted: bool) -> None:
    decisions = iter(wanted)

    def script(*arguments: Any) -> Decision:
        found = decide(*arguments)
        return replace(found, chosen=found.best if next(decisions) else None)

    monkeypatch.setattr(boosting, "decide", script)


def stop_before(number: int, monkeypatch: Patch) -> None:
    true = boosting._run_round

    def run_round(store: Any, run: Any, plan: Any, entry: Any, *more: Any) -> Any:
        if entry.number == number:
            raise Stopped
        return true(store, run, plan, entry, *more)

    monkeypatch.setattr(boosting, "_run_round", run_round)


def test_a_round_starts_from_the_last_weights_and_after_a_rejection_from_the_incumbent(
    store: Path, tmp_path: Path, monkeypatch: Patch, ends: Ends
) -> None:
    accept(monkeypatch, True, False, True)
    run = tmp_path / "run"
    assert train(store, run) == 0
    offered = weights_of(run / "rounds" / "01")
    assert same(ends[1][0], ends[0][1])
    assert not same(offered, ends[0][1])
    assert same(ends[2][0], offered)
    assert same(weights_of(run / "model"), weights_of(run / "rounds" / "03"))
    assert sorted(path.name for path in (run / "rounds").iterdir()) == ["01", "03"]


@pytest.mark.parametrize("second", [True, False])
@pytest.mark.parametrize("number", [2, 3])
def test_a_run_stopped_between_rounds_resumes_to_the_same_model(
    store: Path, tmp_path: Path, monkeypatch: Patch, ends: Ends, second: bool, number: int
) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    accept(monkeypatch, True, second, True, True, second, True)
    assert train(store, whole) == 0
    with pytest.MonkeyPatch.context() as patch:
        stop_before(number, patch)
        with pytest.raises(Stopped):
            train(store, run)
    kept = [path.name for path in (run / "rounds").glob("*.safetensors")]
    last = number == 2 or second
    assert kept == ([f"{number - 1:02}.safetensors"] if last else [])
    if last:
        trained = ends[number - 2][1]
        assert same(read_last_weights(run / "rounds" / kept[0]), trained)
        assert not same(weights_of(run / "rounds" / f"{number - 1:02}"), trained)
    assert train(store, run) == 0
    assert same(weights_of(run / "model"), weights_of(whole / "model"))
    assert [line["candidates"] for line in lines_of(run)] == [
        line["candidates"] for line in lines_of(whole)
    ]


@pytest.mark.parametrize("harm", ["gone", "cut"])
def test_a_run_without_its_last_weights_stops_and_names_them(
    store: Path, tmp_path: Path, monkeypatch: Patch, capsys: Captured, harm: str
) -> None:
    run = tmp_path / "run"
    accept(monkeypatch, True)
    with pytest.MonkeyPatch.context() as patch:
        stop_before(2, patch)
        with pytest.raises(Stopped):
            train(store, run)
    place = run / "rounds" / "01.safetensors"
    data = place.read_bytes()
    place.unlink()
    if harm == "cut":
        place.write_bytes(data[:-50])
    capsys.readouterr()
    assert train(store, run) == 2
    told = capsys.readouterr().err
    assert "[model-invalid]" in told
    assert "the next round starts from these weights" in told
    assert "01.safetensors" in told
    assert "Traceback" not in told
