"""What the journals of a run say: why each round was kept or not, and how the loss went."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from training.runs import HISTORY, METRICS, ROUND_ENSEMBLE, ROUNDS, RunFolder


@dataclass(frozen=True)
class LearningCurve:
    """The training loss along all rounds of a run.

    Parameters
    ----------
    steps : tuple of int
        Of the optimizer, counted through all rounds.
    losses, rates : tuple of float
        The mean loss since the step before, and the learning rate there.
    ends : tuple of int
        The last step of each finished round.
    """

    steps: tuple[int, ...]
    losses: tuple[float, ...]
    rates: tuple[float, ...]
    ends: tuple[int, ...]


def read_curve(run: RunFolder) -> LearningCurve:
    """Read the loss of each finished round; of steps that were taken twice the last time counts."""
    metrics = run.lines(METRICS)
    told: list[tuple[int, float, float]] = []
    ends: list[int] = []
    base = 0
    for entry in run.lines(HISTORY):
        lines = {line["step"]: line for line in metrics if line["round"] == entry["round"]}
        told += [
            (base + step, line["loss"], line["learning_rate"])
            for step, line in sorted(lines.items())
        ]
        base += entry["steps"]
        ends.append(base)
    steps, losses, rates = zip(*told, strict=True) if told else ((), (), ())
    return LearningCurve(steps, losses, rates, tuple(ends))


def explain_decision(line: Mapping[str, Any]) -> str:
    """Why a round was accepted or rolled back, from its line in the journal."""
    gain, error = line["gain"], line["gain_error"]
    if line["best"] is None:
        return "it diverged: no candidate has a loss"
    if gain is None:
        return "the first model, with nothing to protect"
    told = (
        f"gain {gain:.4f} {'exceeds' if gain > error else 'does not exceed'} its error {error:.4f}"
    )
    if line["accepted"] == (gain > error):
        return told
    caution = line["caution"]
    if line["accepted"]:
        return (
            f"{told}, but {'every round is accepted' if caution is None else 'less is asked for'}"
        )
    return f"{told}, but {'more is asked for' if caution > 1 else 'no loss is lower'}"


def summarise(run: RunFolder) -> list[tuple[str, object]]:
    """What training came to, for a table."""
    history = run.lines(HISTORY)
    rows: list[tuple[str, object]] = [
        ("rounds", f"{len(history)} of {len(run.read(ROUNDS))}"),
        ("accepted", sum(line["accepted"] for line in history)),
        ("slices", sum(line["slices"] for line in history)),
    ]
    if history:
        rows += [
            ("model of round", history[-1]["incumbent"]),
            ("guard_loss", f"{history[-1]['guard_loss']:.4f}"),
            ("best constant on the guard", f"{history[-1]['guard_best_constant']:.4f}"),
        ]
    if run.has(ROUND_ENSEMBLE):
        rows.append(("guard_loss of the mixture", f"{run.read(ROUND_ENSEMBLE)['guard_loss']:.4f}"))
    return rows
