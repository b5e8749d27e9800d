"""The model card: what a model is, of what data, how good, for whom, and where its limits are.

It is rendered from the documents of the run folder alone, once when a model is saved and again when
the locked test was opened. It names no study and no place where data lie.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from training.config import RunConfig
from training.data.splits import SIDES
from training.durable import write_text
from training.rounds.plan import RoundPlan
from training.runs import EVALUATION, HISTORY, ROUNDS, RUN_ENSEMBLE, SETTINGS, SPLITS, RunFolder

CARD = "README.md"


def render_card(
    run: RunFolder,
    number: int,
    kind: str,
    *,
    loss: float,
    best_constant: float,
    evaluation: Mapping[str, Any] | None = None,
) -> str:
    """The card of the model after a round; number 0 is the start.

    Parameters
    ----------
    run : RunFolder
        Planned.
    number : int
    kind : str
        ``slice``, or another name of `training.models.kinds.KINDS`.
    loss, best_constant : float
        On the guard patients.
    evaluation : mapping, optional
        Of this very model, on the locked test patients.
    """
    settings = run.read(SETTINGS)
    plans = [RoundPlan.from_json(plan) for plan in run.read(ROUNDS)]
    start = settings["start"]
    return _render(
        run,
        kind=kind,
        number=number,
        seen=plans[:number],
        rounds=len(plans),
        start="random weights" if start is None else f"`{Path(start).name}`",
        loss=loss,
        best_constant=best_constant,
        evaluation=evaluation,
    )


def write_blend_card(run: RunFolder) -> None:
    """Write the card of a blend beside its members."""
    document = run.read(RUN_ENSEMBLE)
    card = _render(
        run,
        kind="blend",
        members=document["members"],
        fitted=document.get("fitted"),
        evaluation=run.read(EVALUATION) if run.has(EVALUATION) else None,
    )
    write_text(run.path / CARD, card)


def renew_card(run: RunFolder, kind: str) -> None:
    """Write the card of what a run offers again, once there is an evaluation."""
    if run.has(RUN_ENSEMBLE):
        write_blend_card(run)
        return
    line = run.lines(HISTORY)[-1]
    card = render_card(
        run,
        line["incumbent"],
        kind,
        loss=line["guard_loss"],
        best_constant=line["guard_best_constant"],
        evaluation=run.read(EVALUATION),
    )
    write_text(run.model / CARD, card)


def _render(run: RunFolder, **facts: Any) -> str:
    config = RunConfig.from_json(run.read(SETTINGS)["config"])
    splits = run.read(SPLITS)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("training.rounds"),
        undefined=jinja2.StrictUndefined,
        autoescape=False,
    )
    environment.filters["zip"] = lambda these, those: list(zip(these, those, strict=True))
    return environment.get_template("card.md.j2").render(
        config=config,
        inputs=config.inputs,
        sides={side: len(splits[side]) for side in SIDES},
        **facts,
    )
