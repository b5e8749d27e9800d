"""The journals of a run: why each round was accepted or rolled back, and the training loss."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from training.runs import HISTORY, METRICS, ROUND_ENSEMBLE, ROUNDS, RunFolder


@dataclass(frozen=True)
class LearningCurve:
    """The training loss over all rounds of a run.

    Parameters
    ----------
    steps : tuple of int
        Optimizer steps, counted over all rounds.
    losses : tuple of float
        Mean training loss since the previous entry.
    rates : tuple of float
        Learning rate at each step.
    ends : tuple of int
        Last step of each finished round.
    """

    steps: tuple[int, ...]
    losses: tuple[float, ...]
    rates: tuple[float, ...]
    ends: tuple[int, ...]


def read_curve(run: RunFolder) -> LearningCurve:
    """Read the training loss of the finished rounds.

    For steps that were repeated after a resume, the last entry counts.
    """
    metrics = run.lines(METRICS)
    points: list[tuple[int, float, float]] = []
    ends: list[int] = []
    base = 0
    for entry in run.lines(HISTORY):
        lines = {line["step"]: line for line in metrics if line["round"] == entry["round"]}
        points += [
            (base + step, line["loss"], line["learning_rate"])
            for step, line in sorted(lines.items())
        ]
        base += entry["steps"]
        ends.append(base)
    steps, losses, rates = zip(*points, strict=True) if points else ((), (), ())
    return LearningCurve(steps, losses, rates, tuple(ends))


def explain_decision(line: Mapping[str, Any]) -> str:
    """Explain why a round was accepted or rolled back.

    Parameters
    ----------
    line : mapping
        Journal line of the round.
    """
    gain, error = line["gain"], line["gain_error"]
    if line["best"] is None:
        return "training diverged: no candidate has finite weights"
    if gain is None:
        return "first model: no incumbent to compare with"
    explanation = (
        f"gain {gain:.4f} {'exceeds' if gain > error else 'does not exceed'}"
        f" its standard error {error:.4f}"
    )
    if line["accepted"] == (gain > error):
        return explanation
    caution = line["caution"]
    if caution is None:
        return f"{explanation}, but every round is accepted"
    if line["accepted"] or caution > 1:
        return f"{explanation}, but caution is {caution:g}"
    return f"{explanation}, but no guard loss is lower"


def summarise(run: RunFolder) -> list[tuple[str, object]]:
    """Return the summary of a run as table rows."""
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
