"""One self-contained HTML page about an evaluated run: its score, its rounds, its cases, its card.

All of it stands in the run folder already. Not here: scoring (`training.evaluation.evaluate`),
drawing (`training.report.plots`), and what the journals say (`training.rounds.journal`).
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

from presentation.pages import data_url, page_templates
from storage_schemas.errors import UsageError, reason_of
from storage_schemas.vertebrae import LABEL_COLUMNS
from training.data.splits import SIDES
from training.evaluation.evaluate import BEST, ENSEMBLE, FIGURES, MODEL, TEST_CONSTANT, Evaluation
from training.explanation.examples import KINDS, LIST
from training.report.plots import (
    plot_calibration,
    plot_candidates,
    plot_learning,
    plot_losses,
    plot_precision,
    plot_roc,
)
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
"""Studies of the largest loss, and of the smallest, that are shown before all of them."""
_HEADINGS = 2
"""By how much those of the card sink below the page's own."""


def render_report(run: RunFolder) -> tuple[str, Evaluation]:
    """Make the page.

    Parameters
    ----------
    run : RunFolder
        Trained and evaluated: a plain run, a run in folds, or a blend.

    Returns
    -------
    str
        HTML without any outside reference.
    Evaluation
        What it shows.

    Raises
    ------
    UsageError
        ``config-invalid`` where the run was not evaluated yet, or by another version.
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
            names={"model": MODEL, "best": BEST, "hardest": TEST_CONSTANT, "mixture": ENSEMBLE},
            figures=FIGURES,
            targets=LABEL_COLUMNS,
            sides={side: len(splits[side]) for side in SIDES},
            config=settings["config"],
            start=settings["start"],
            journals=[_journal(each, number) for number, each in enumerate(_parts(run))],
            blend=run.read(RUN_ENSEMBLE) if run.has(RUN_ENSEMBLE) else None,
            stack=run.read(ROUND_ENSEMBLE) if run.has(ROUND_ENSEMBLE) else None,
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
    """The runs whose rounds are told: its folds, or itself; a blend holds copies of models only."""
    return fold_runs(run) or (() if run.has(RUN_ENSEMBLE) else (run,))


def _journal(run: RunFolder, number: int) -> dict[str, Any]:
    """The rounds of a run, and how its loss went."""
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
    """The cases of each kind with their pictures, and the probability of each."""
    said = {exam["study"]: exam["probabilities"] for exam in evaluation.exams}
    cases: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for entry in run.read(LIST):
        chance = said[entry["study"]][LABEL_COLUMNS.index(entry["level"])]
        pictures = {name: _picture(run, entry[name]) for name in ("plain", "heat")}
        cases[entry["kind"]].append(entry | pictures | {"chance": chance})
    return cases


def _picture(run: RunFolder, name: str) -> str:
    """A data URL of one of the run's pictures."""
    path = run.path / EXAMPLES / Path(name).name
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = f"{reason_of(error)}: evaluate RUN again"
        raise UsageError("config-invalid", reason, key=str(path)) from None
    return data_url(data, "png")


def _card(run: RunFolder) -> str:
    """The model card as HTML; its markup is Markdown's alone."""
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
