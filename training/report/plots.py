"""Plots of the training report."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from presentation.figures import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    new_figure,
    page_style,
    svg_of,
)
from training.evaluation.evaluate import BEST, LEVELS, MODEL, PRIOR, Evaluation, title
from training.rounds.journal import LearningCurve

_LINES = ("-", ":")
"""Line styles of the model and of the ensemble."""
_SQUARE = (4.2, 3.6)


def plot_losses(evaluation: Evaluation) -> str:
    """Plot the loss of each target with its interval, for models and constant predictions."""
    with page_style():
        figure, axes = new_figure(10.6, 3.6)
        names = ["all", *evaluation.targets]
        places = np.arange(len(names))
        for name, colour, width in ((BEST, ORANGE, 0.7), (PRIOR, GREY, 0.5)):
            losses = _floats(evaluation.losses[name][target] for target in names)
            axes.hlines(losses, places - width / 2, places + width / 2, color=colour, label=name)
        for number, (name, colour) in enumerate(
            zip(evaluation.figures, (BLUE, GREEN), strict=False)
        ):
            values = _floats(evaluation.losses[name][target] for target in names)
            ends = np.array(
                [evaluation.intervals[name][target] or (np.nan, np.nan) for target in names]
            ).T
            # A percentile interval need not contain the value.
            reach = np.clip([values - ends[0], ends[1] - values], 0, None)
            axes.errorbar(
                places + 0.18 * number,
                values,
                reach,
                fmt="o",
                color=colour,
                label=title(name),
                capsize=2,
            )
        axes.set_xticks(places, [name.removeprefix("patient_") for name in names])
        axes.set_ylabel("weighted log loss")
        axes.set_ylim(bottom=0)
        figure.legend(loc="outside upper center", ncols=4)
        return svg_of(figure, "losses")


def _floats(values: Iterable[float | None]) -> NDArray[np.float64]:
    """Return the values, NaN for None; matplotlib leaves them out."""
    return np.array([np.nan if value is None else value for value in values])


def plot_candidates(rounds: Sequence[Mapping[str, Any]], name: str) -> str:
    """Plot the guard loss of each round's candidates, and of the incumbent."""
    with page_style():
        figure, axes = new_figure()
        others = [
            (entry["round"], loss)
            for entry in rounds
            for candidate, loss in entry["candidates"].items()
            if not (entry["accepted"] and candidate == entry["best"])
        ]
        if others:
            axes.plot(*zip(*others, strict=True), "o", color=GREY, ms=4, label="candidate")
        kept = [(entry["round"], entry["guard_loss"]) for entry in rounds if entry["accepted"]]
        if kept:
            axes.plot(*zip(*kept, strict=True), "D", color=GREEN, ms=6, label="accepted")
        incumbents = [(e["round"], e["guard_loss"]) for e in rounds if e["guard_loss"] is not None]
        if incumbents:
            axes.step(*zip(*incumbents, strict=True), color=BLUE, where="post", label="incumbent")
        constant = rounds[-1]["guard_best_constant"]
        axes.axhline(constant, color=ORANGE, linestyle="--", linewidth=1, label="best constant")
        axes.set_xticks([entry["round"] for entry in rounds])
        axes.set_xlabel("round")
        axes.set_ylabel("guard loss")
        axes.legend()
        return svg_of(figure, name)


def plot_learning(curve: LearningCurve, name: str) -> str:
    """Plot training loss and learning rate by step; vertical lines mark the end of a round."""
    with page_style():
        figure, axes = new_figure()
        for end in curve.ends[:-1]:
            axes.axvline(end, color=GREY, linewidth=0.6, linestyle=":")
        rates = axes.twinx()
        rates.patch.set_alpha(0)
        rates.plot(curve.steps, curve.rates, color=ORANGE, linewidth=0.9)
        rates.set_ylabel("learning rate", color=ORANGE)
        rates.spines["right"].set_visible(True)
        rates.ticklabel_format(axis="y", scilimits=(-2, 2))
        axes.plot(curve.steps, curve.losses, color=BLUE, linewidth=1.3)
        axes.set_ylabel("training loss", color=BLUE)
        axes.set_xlabel("optimizer step")
        axes.set_ylim(bottom=0)
        rates.set_ylim(bottom=0)
        return svg_of(figure, name)


def plot_calibration(evaluation: Evaluation) -> str:
    """Plot the reliability diagram."""
    return _plot_curves(
        evaluation,
        "calibration",
        ("predicted probability", "observed fracture rate"),
        diagonal=True,
    )


def plot_roc(evaluation: Evaluation) -> str:
    """Plot the ROC curve."""
    return _plot_curves(evaluation, "roc", ("1 - specificity", "sensitivity"), diagonal=True)


def plot_precision(evaluation: Evaluation) -> str:
    """Plot the precision-recall curve."""
    return _plot_curves(evaluation, "precision_recall", ("sensitivity", "precision"))


def _plot_curves(
    evaluation: Evaluation, kind: str, labels: tuple[str, str], *, diagonal: bool = False
) -> str:
    with page_style():
        figure, axes = new_figure(*_SQUARE)
        if diagonal:
            axes.plot([0, 1], [0, 1], color=INK, linewidth=0.7, linestyle="--", alpha=0.5)
        for (model, groups), line in zip(evaluation.curves.items(), _LINES, strict=False):
            for group, curves in groups.items():
                if (points := curves[kind]) is None:
                    continue
                name = group.removeprefix("patient_")
                label = name if model == MODEL else f"{name}, {title(model)}"
                x, y = zip(*points, strict=True)
                axes.plot(
                    x,
                    y,
                    line,
                    marker="o" if kind == "calibration" else "",
                    markersize=4,
                    color=ORANGE if group == LEVELS else BLUE,
                    label=label,
                    # Between two thresholds, the precision is that of the larger one.
                    drawstyle="steps-post" if kind == "precision_recall" else "default",
                )
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        axes.legend()
        return svg_of(figure, kind)
