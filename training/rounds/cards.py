"""Model cards, rendered from the documents of the run folder.

A card is written when a model is saved, and again after the test-set evaluation. It contains no
study key and no data path.
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
    """Render the card of the model after a round.

    Parameters
    ----------
    run : RunFolder
        Run folder with the documents of the plan.
    number : int
        Round of the model; 0 is the starting model.
    kind : str
        Kind of the model: ``slice``, or another name in `training.models.kinds.KINDS`.
    loss : float
        Loss of the model on the guard patients.
    best_constant : float
        Loss of the best constant predictions on the guard patients.
    evaluation : mapping, optional
        Test-set evaluation of this model.
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
    """Write the card of an ensemble of runs."""
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
    """Rewrite the card of the run's model after its evaluation."""
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
        levels=run.targets().levels,
        inputs=config.inputs,
        sides={side: len(splits[side]) for side in SIDES},
        **facts,
    )
