"""One self-contained HTML page about a run: its score, its rounds, pictures."""

import base64
import io
from dataclasses import asdict
from typing import Any

import jinja2
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from storage_schemas.errors import UsageError
from storage_schemas.vertebrae import LABEL_COLUMNS
from training.evaluate import BEST, MODEL, Evaluation
from training.examples import KINDS
from training.runs import EVALUATION, EXAMPLES, HISTORY, METRICS, SETTINGS, SPLITS, RunFolder
from training.splits import SIDES

_BLUE, _ORANGE, _GREY = "#0072b2", "#e69f00", "#888888"
"""Told apart by everyone (Okabe and Ito, Color Universal Design)."""


def render_report(run: RunFolder) -> tuple[str, Evaluation]:
    """Make the page.

    Parameters
    ----------
    run : RunFolder
        Trained and evaluated.

    Returns
    -------
    str
        HTML without any outside reference.
    Evaluation
        What it shows.

    Raises
    ------
    UsageError
        ``config-invalid`` where the run was not evaluated yet.
    """
    if not run.has(EVALUATION):
        raise UsageError(
            "config-invalid", "RUN has no evaluation yet: evaluate it first", key=str(run.path)
        )
    evaluation = Evaluation.from_json(run.read(EVALUATION))
    splits = run.read(SPLITS)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("training"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("report.html.j2").render(
        evaluation=asdict(evaluation),
        verdict=evaluation.verdict,
        targets=LABEL_COLUMNS,
        sides={side: len(splits[side]) for side in SIDES},
        rounds=run.lines(HISTORY),
        config=run.read(SETTINGS)["config"],
        figures=[_draw_targets(evaluation), _draw_rounds(run)],
        examples=_examples(run),
    )
    return page, evaluation


def _draw_targets(evaluation: Evaluation) -> str:
    """Bars of the loss of each target: the model and the best constants."""
    figure = Figure((8, 3), layout="constrained")
    axes = figure.subplots()
    names = ["all", *LABEL_COLUMNS]
    places = np.arange(len(names))
    for shift, (rival, colour) in enumerate(((MODEL, _BLUE), (BEST, _GREY))):
        losses = [evaluation.losses[rival][name] for name in names]
        axes.bar(places + 0.4 * shift, losses, 0.38, color=colour, label=rival)
    axes.set_xticks(places + 0.2, [name.removeprefix("patient_") for name in names])
    axes.set_ylabel("weighted log loss")
    axes.legend(frameon=False)
    return _svg(figure)


def _draw_rounds(run: RunFolder) -> str:
    """The training loss along the steps, and the guard's verdict after each round."""
    figure = Figure((8, 3), layout="constrained")
    axes = figure.subplots()
    history = run.lines(HISTORY)
    steps, losses, ends = [], [], [0]
    for entry in history:
        # A round that was killed and begun again left lines of both tries; the last ones count.
        lines = {m["step"]: m for m in run.lines(METRICS) if m["round"] == entry["round"]}
        steps += [ends[-1] + step for step in sorted(lines)]
        losses += [lines[step]["loss"] for step in sorted(lines)]
        ends.append(ends[-1] + max((line["steps"] for line in lines.values()), default=0))
    axes.plot(steps, losses, color=_GREY, linewidth=1, label="training loss, slices")
    guard = [entry["guard_loss"] for entry in history]
    axes.plot(ends[1:], guard, "o-", color=_BLUE, label="guard loss, patients")
    if history:
        constant = history[-1]["guard_best_constant"]
        axes.axhline(constant, color=_ORANGE, linestyle="--", label="best constant on the guard")
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel("loss")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return _svg(figure)


def _svg(figure: Figure) -> str:
    """A data URL of the figure; the same figure gives the same bytes."""
    stream = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "cspine"}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _examples(run: RunFolder) -> dict[str, list[dict[str, Any]]]:
    listed = run.read(f"{EXAMPLES}/examples.json")
    for entry in listed:
        data = (run.path / EXAMPLES / entry["file"]).read_bytes()
        entry["picture"] = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return {kind: [entry for entry in listed if entry["kind"] == kind] for kind in KINDS}
