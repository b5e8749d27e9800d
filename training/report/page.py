"""The training report: one self-contained HTML page about an evaluated run.

Everything is read from the run folder. Scores come from `training.evaluation.evaluate`, plots from
`training.report.plots`, decisions from `training.rounds.journal`.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

from presentation.pages import data_url, page_templates
from storage_schemas.errors import UsageError, reason_of
from training.data.splits import SIDES
from training.evaluation.evaluate import (
    BEST,
    METRIC_TITLES,
    MODEL,
    TEST_CONSTANT,
    Evaluation,
    title,
)
from training.explanation.examples import KINDS, LIST
from training.report.plots import (
    plot_calibration,
    plot_candidates,
    plot_learning,
    plot_losses,
    plot_precision,
    plot_roc,
)
from training.rounds.candidates import candidate_title
from training.rounds.cards import CARD
from training.rounds.folds import fold_runs
from training.rounds.journal import explain_decision, read_curve
from training.runs import (
    EVALUATION,
    EXAMPLES,
    HISTORY,
    ROUND_ENSEMBLE,
    ROUNDS,
    RUN_ENSEMBLE,
    SETTINGS,
    SPLITS,
    RunFolder,
)

SHOWN = 5
"""Number of studies with the largest and the smallest loss in the first two tables."""
_HEADINGS = 2
"""Levels by which the headings of the model card are lowered."""


def render_report(run: RunFolder) -> tuple[str, Evaluation]:
    """Render the page.

    Parameters
    ----------
    run : RunFolder
        Evaluated run: plain, cross-validated or an ensemble of runs.

    Returns
    -------
    page : str
        HTML without external references.
    evaluation : Evaluation
        Evaluation that the page shows.

    Raises
    ------
    UsageError
        ``config-invalid`` if the run has no evaluation, or one of another version.
    """
    evaluation = _read_evaluation(run)
    splits, settings = run.read(SPLITS), run.read(SETTINGS)
    exams = sorted(evaluation.exams, key=lambda exam: -exam["loss"])
    page = (
        page_templates("training")
        .get_template("report.html.j2")
        .render(
            run=run.path.resolve().name,
            store=settings["store"],
            evaluation=asdict(evaluation),
            headline=evaluation.headline,
            names={"model": MODEL, "best": BEST, "test_constant": TEST_CONSTANT},
            title=title,
            candidate_title=candidate_title,
            metrics=METRIC_TITLES,
            targets=evaluation.targets,
            known=evaluation.known,
            sides={side: len(splits[side]) for side in SIDES},
            config=settings["config"],
            start=settings["start"],
            journals=[_journal(each, number) for number, each in enumerate(_parts(run))],
            blend=run.read(RUN_ENSEMBLE) if run.has(RUN_ENSEMBLE) else None,
            round_ensemble=run.read(ROUND_ENSEMBLE) if run.has(ROUND_ENSEMBLE) else None,
            plots={
                "losses": plot_losses(evaluation),
                "calibration": plot_calibration(evaluation),
                "roc": plot_roc(evaluation),
                "precision": plot_precision(evaluation),
            },
            cases=_cases(run, evaluation),
            exams=exams,
            shown=SHOWN,
            card=_card(run),
        )
    )
    return page, evaluation


def _read_evaluation(run: RunFolder) -> Evaluation:
    if not run.has(EVALUATION):
        reason = "RUN has no evaluation yet: evaluate it first"
        raise UsageError("config-invalid", reason, key=str(run.path))
    try:
        return Evaluation.from_json(run.read(EVALUATION))
    except (KeyError, TypeError):
        reason = f"{EVALUATION} is of another version: evaluate RUN again"
        raise UsageError("config-invalid", reason, key=str(run.path)) from None


def _parts(run: RunFolder) -> tuple[RunFolder, ...]:
    """Return the runs whose rounds are shown: the folds, the run itself, or none."""
    return fold_runs(run) or (() if run.has(RUN_ENSEMBLE) else (run,))


def _journal(run: RunFolder, number: int) -> dict[str, Any]:
    """Collect the rounds of a run, with their plots."""
    rounds = run.lines(HISTORY)
    return {
        "name": run.path.name,
        "planned": len(run.read(ROUNDS)),
        "rounds": [entry | {"reason": explain_decision(entry)} for entry in rounds],
        "candidates": list(dict.fromkeys(name for entry in rounds for name in entry["candidates"])),
        "guard": plot_candidates(rounds, f"guard-{number}") if rounds else "",
        "learning": plot_learning(read_curve(run), f"learning-{number}"),
    }


def _cases(run: RunFolder, evaluation: Evaluation) -> dict[str, list[dict[str, Any]]]:
    """Collect the example cases of each kind, with pictures and probabilities."""
    probabilities = {exam["study"]: exam["probabilities"] for exam in evaluation.exams}
    cases: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for entry in run.read(LIST):
        probability = probabilities[entry["study"]][evaluation.targets.index(entry["level"])]
        pictures = {name: _picture(run, entry[name]) for name in ("plain", "heat")}
        cases[entry["kind"]].append(entry | pictures | {"probability": probability})
    return cases


def _picture(run: RunFolder, name: str) -> str:
    """Return a picture of the run as a data URL."""
    path = run.path / EXAMPLES / Path(name).name
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = f"{reason_of(error)}: evaluate RUN again"
        raise UsageError("config-invalid", reason, key=str(path)) from None
    return data_url(data, "png")


def _card(run: RunFolder) -> str:
    """Render the model card as HTML; HTML inside the card is escaped."""
    folder = run.path if run.has(RUN_ENSEMBLE) else run.model
    try:
        text = (folder / CARD).read_text()
    except OSError as error:
        raise UsageError("config-invalid", reason_of(error), key=str(folder / CARD)) from None
    if text.startswith("---\n"):
        _, _, text = text[4:].partition("\n---\n")
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = markdown.parse(text)
    for token in tokens:
        if token.type.startswith("heading"):
            token.tag = f"h{min(6, int(token.tag[1]) + _HEADINGS)}"
    html: str = markdown.renderer.render(tokens, markdown.options, {})
    return html.replace("<table>", '<div class="wide"><table>').replace(
        "</table>", "</table></div>"
    )
