"""The command line of training: arguments in, one of the stages out.

``cspine-training boost STORE RUN`` trains, ``blend`` puts runs together, ``evaluate`` opens the
locked test, ``predict`` writes probabilities and what they rest on, ``report`` a page;
``localizer`` trains what finds the vertebrae. Exit codes: 0 done; 1 something stored is missing or
damaged; 2 wrong usage or configuration; 3 the run could not finish.
"""

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from presentation.commandline import (
    OneLineParser,
    add_shared_flags,
    run_command,
    tell_summary,
)
from presentation.output import write_output
from presentation.progress import StageProgress, result_console, say_event
from storage_schemas.store import StudyStore
from training.config import PRESETS, Order, Pooling, RunConfig
from training.localizer.config import LOCALIZER_PRESETS, LocalizerConfig
from training.rounds.recipes import RECIPES
from training.runs import OUT_OF_FOLD, RunFolder

Rows = list[tuple[str, object]]
"""Of a summary."""

# torch and transformers take seconds to import: each command imports its own stage.


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; every error is one line."""
    quiet_libraries()
    return run_command(parser(), arguments, stopped="finished rounds stay")


def quiet_libraries() -> None:
    """Set what libraries read when they are imported: no network, no chatter, no spinning."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # Threads of torch that wait by spinning take the cores from those that work.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="torch")


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = OneLineParser("cspine-training", description="vertebra crops to predictions")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    boost = commands.add_parser("boost", help="train a model in rounds")
    boost.add_argument("store", metavar="STORE", help="folder or URL of the store")
    boost.add_argument("run", metavar="RUN", type=Path, help="folder to write to")
    boost.add_argument("--recipe", choices=RECIPES, help="how rounds go (default: boost)")
    boost.add_argument("--model", type=Path, metavar="DIR", help="local checkpoint to start from")
    boost.add_argument("--preset", choices=sorted(PRESETS), default="default")
    boost.add_argument("--seed", type=int, metavar="S")
    boost.add_argument(
        "--folds", type=int, metavar="K", help="train K runs, each without one of K parts"
    )
    _add_settings(boost)
    boost.set_defaults(command=_boost)

    localizer = commands.add_parser("localizer", help="train what finds C1 to C7")
    localizer.add_argument("store", metavar="STORE", help="of a run with masks")
    localizer.add_argument("out", metavar="OUT.onnx", type=Path, help="file to write")
    localizer.add_argument("--preset", choices=sorted(LOCALIZER_PRESETS), default="default")
    default = LocalizerConfig()
    for name, told in _LOCALIZER_SETTINGS.items():
        value = getattr(default, name)
        localizer.add_argument(
            f"--{name.replace('_', '-')}",
            type=type(value),
            metavar="N",
            help=f"{told} (default preset: {value})",
        )
    localizer.set_defaults(command=_localizer)

    blend = commands.add_parser("blend", help="put runs together by convex weights")
    blend.add_argument("out", metavar="OUT", type=Path, help="folder to write to")
    blend.add_argument("runs", metavar="RUN", type=Path, nargs="+")
    blend.add_argument("--store", metavar="STORE", required=True, help="whose labels weigh them")
    blend.set_defaults(command=_blend)

    evaluate = commands.add_parser("evaluate", help="score RUN on its locked test patients")
    evaluate.add_argument("run", metavar="RUN", type=Path)
    evaluate.add_argument("store", metavar="STORE")
    evaluate.set_defaults(command=_evaluate)

    predict = commands.add_parser("predict", help="write probabilities of every study of STORE")
    predict.add_argument("run", metavar="RUN", type=Path)
    predict.add_argument("store", metavar="STORE")
    predict.add_argument("out", metavar="OUT", type=Path, help="csv to write")
    predict.add_argument(
        "--submission",
        metavar="sample_submission.csv",
        help="make OUT a submission of these rows; the table goes beside it, as .table.csv",
    )
    predict.add_argument(
        "--stack", action="store_true", help="use the mixture of rounds, not the one model"
    )
    predict.add_argument(
        "--explain", type=Path, metavar="FOLDER", help="write a page and a JSON file of each study"
    )
    predict.set_defaults(command=_predict)

    report = commands.add_parser("report", help="write a page about an evaluated RUN")
    report.add_argument("run", metavar="RUN", type=Path)
    report.add_argument("out", metavar="OUT.html", type=Path)
    report.set_defaults(command=_report)

    add_shared_flags(commands)
    return top


_SETTINGS: dict[str, dict[str, str]] = {
    "train": {
        "rounds": "at most so many rounds (default: until every training patient was seen)",
        "slices_per_round": "about so many",
        "order": "whether rounds are alike, or sites come one after another",
        "epochs": "draws a round, as a multiple of its slices",
        "batch_size": "slices a step",
        "accumulation": "batches a step of the optimizer",
        "learning_rate": "peak of each round",
        "fractured_share": "share of each batch that shows a fracture",
        "weak_target": "what a slice of a broken vertebra without boxes is worth",
        "checkpoint_steps": "a killed round goes on from the last of so many steps",
    },
    "boost": {
        "replay": "share of a round's inputs that come from earlier rounds",
        "rate_fall": "peak rate of a round, as a multiple of the one before",
        "layer_decay": "rate of a layer, as a multiple of the one above",
        "ema_window": "share of a round's steps that the moving average looks back",
        "caution": "how many times its own error a round's gain must exceed",
    },
    "inputs": {
        "size": "pixels of the square input",
        "crop_mm": "side of the square that it shows",
        "trim_mm": "of a crop's lower and upper end that is no input",
        "neighbours": "slices that are channels; more than 3 for sequences alone",
        "mask": "the vertebra's mask is one more channel, for sequences alone",
    },
    "sequence": {
        "positions": "slices of a vertebra that are looked at, at most",
        "sampled": "of these in training, each time",
        "pooling": "whether positions read each other",
        "frozen": "train the heads alone, on features that are kept",
        "head_epochs": "draws of the patients for the heads, in each round",
    },
    "model": {
        "patch": "pixels, of a model made without --model",
        "width": "likewise",
        "depth": "likewise",
        "heads": "likewise",
    },
    "split": {
        "guard": "share of the patients",
        "calibration": "share of the patients",
        "test": "share of the patients",
    },
}
"""The fields of `RunConfig` that have a flag, and what `--help` says of them."""
_CHOICES = {"order": get_args(Order), "pooling": get_args(Pooling)}
"""Of those that are no numbers."""


_OLD_FLAGS = {
    "fractured_share": ("--broken-share",),
    "ema_window": ("--average",),
    "sampled": ("--drawn",),
}


_LOCALIZER_SETTINGS = {
    "size": "voxels along each side of the cube that it sees: 32, 64 or 128",
    "steps": "of the optimizer",
    "batch_size": "overviews a step",
    "learning_rate": "its peak",
    "folds": "groups of patients",
    "fold": "the one that is held out, from 0",
    "margin_mm": "around a vertebra, where boxes are judged",
    "seed": "of folds, weights and draws",
}
"""The fields of `LocalizerConfig` that have a flag, and what `--help` says of them."""


def _add_settings(command: argparse.ArgumentParser) -> None:
    defaults = RunConfig()
    for part, settings in _SETTINGS.items():
        group = command.add_argument_group(part)
        kinds = get_type_hints(type(getattr(defaults, part)))
        for name, told in settings.items():
            value = getattr(getattr(defaults, part), name)
            flag = f"--{name.replace('_', '-')}"
            if kinds[name] is bool:
                group.add_argument(flag, action="store_const", const=True, help=told)
                continue
            group.add_argument(
                *(flag, *_OLD_FLAGS.get(name, ())),
                type=float if kinds[name] is float else str if name in _CHOICES else int,
                choices=_CHOICES.get(name),
                metavar=None if name in _CHOICES else "N",
                help=told if value is None else f"{told} (default preset: {value})",
            )


def _boost(options: argparse.Namespace) -> int:
    from training.ranks import is_first, joined_ranks
    from training.rounds.boosting import boost
    from training.rounds.folds import boost_folds
    from training.rounds.journal import summarise

    given: dict[str, dict[str, Any]] = {
        part: {name: value for name in names if (value := getattr(options, name)) is not None}
        for part, names in _SETTINGS.items()
    }
    config = PRESETS[options.preset].override(given)
    if options.recipe is not None:
        config = replace(config, recipe=options.recipe)
    if options.seed is not None:
        config = replace(config, seed=options.seed)
    store, run = StudyStore.open(options.store), RunFolder(options.run)
    with joined_ranks():
        if options.folds:
            boost_folds(store, run, config, options.model, options.folds)
            rows: Rows = [("folds", options.folds)]
            made = {"out_of_fold": run.path / OUT_OF_FOLD}
        else:
            boost(store, run, config, options.model)
            rows, made = summarise(run), {"model": run.model}
        if is_first():
            tell_summary("boost", rows, options, made)
    return 0


def _blend(options: argparse.Namespace) -> int:
    from training.evaluation.blend import blend

    runs = [RunFolder(path) for path in options.runs]
    found = blend(StudyStore.open(options.store), RunFolder(options.out), runs)
    rows: Rows = [("studies that no run trained on", found.studies), ("loss", found.loss)]
    for name, weight, loss in zip(found.names, found.weights, found.losses, strict=True):
        rows.append((name, f"weight {weight:.3f}, alone {loss:.4f}"))
    if options.json:
        rows = list(asdict(found).items())
    tell_summary("blend", rows, options, {"blend": options.out})
    return 0


def _localizer(options: argparse.Namespace) -> int:
    from training.localizer.scores import show_scores
    from training.localizer.train import train_localizer

    given = {
        name: value for name in _LOCALIZER_SETTINGS if (value := getattr(options, name)) is not None
    }
    config = replace(LOCALIZER_PRESETS[options.preset], **given)
    card = train_localizer(StudyStore.open(options.store), options.out, config)
    rows: Rows = [("levels named wrongly", card.misnamed)]
    if options.json:
        rows.append(("card", card.to_json()))
    else:
        result_console().print(show_scores(card))
    tell_summary("localizer", rows, options, {"localizer": options.out})
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from training.evaluation.evaluate import evaluate, show

    found = evaluate(StudyStore.open(options.store), RunFolder(options.run))
    if options.json:
        tell_summary("evaluate", list(asdict(found).items()), options)
        return 0
    for table in show(found):
        result_console().print(table)
    tell_summary("evaluate", found.rows(), options)
    print(found.headline)
    return 0


def _predict(options: argparse.Namespace) -> int:
    from training.data.cohort import read_cohort
    from training.evaluation.members import read_members
    from training.evaluation.predict import predict_studies, write_submission, write_table
    from training.models.sequence_inputs import list_warnings
    from training.report.study_pages import explain_studies

    run, store = RunFolder(options.run), StudyStore.open(options.store)
    studies = read_cohort(store)
    crops = sum(len(study.vertebrae) for study in studies)
    with StageProgress("read studies", crops, "crops") as progress:
        predictions = predict_studies(store, run, studies, progress.advance, ensemble=options.stack)
    if options.stack:
        predictions = predictions.with_ensemble(run)
    rows: Rows = [("studies", len(studies))]
    rows.append(("levels_without_crop_by_prior", int(predictions.by_prior.sum())))
    for study in studies:
        if reasons := list_warnings(study.vertebrae):
            say_event("warning", study=study.study, reasons="; ".join(reasons))
    made = {"table": options.out}
    if options.submission:
        made = {"submission": options.out, "table": options.out.with_suffix(".table.csv")}
        priors = read_members(run)[0].calibration().priors
        counts = write_submission(predictions, priors, options.submission, options.out)
        rows += counts.items()
    write_table(predictions, made["table"])
    if options.explain:
        with StageProgress("explain", len(studies), "studies") as progress:
            explain_studies(store, run, studies, predictions, options.explain, progress.advance)
        made["pages"] = options.explain
    tell_summary("predict", rows, options, made)
    return 0


def _report(options: argparse.Namespace) -> int:
    from training.report.page import render_report

    page, evaluation = render_report(RunFolder(options.run))
    size = write_output(options.out, page)
    if not options.json:
        print(evaluation.headline)
    tell_summary("report", [("bytes", size)], options, {"report": options.out})
    return 0


if __name__ == "__main__":
    sys.exit(main())
