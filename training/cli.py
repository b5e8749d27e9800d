"""The command line of training: arguments in, one of the stages out.

``cspine-training boost STORE RUN`` trains a model, ``blend`` combines runs, ``evaluate`` scores the
locked test set, ``predict`` writes probabilities and their explanation, ``report`` writes a page;
``localizer`` trains the network that finds the vertebrae. Exit codes: 0 done; 1 something stored is
missing or damaged; 2 wrong usage or configuration; 3 the run could not finish.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from presentation.commandline import add_command, build_parser, run_command, tell_summary
from presentation.output import write_output
from presentation.progress import is_first_process, result_console
from presentation.setting_flags import read_document
from training import api
from training.config import PRESETS
from training.flags import LOCALIZER_SETTINGS, RUN_SETTINGS
from training.localizer.config import LOCALIZER_PRESETS

Rows = list[tuple[str, object]]
"""Names and values of a summary."""

# torch and transformers take seconds to import: each command imports its own stage.


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; every error is one line."""
    api.quiet_libraries()
    return run_command(parser(), arguments, stopped="finished rounds stay", extra="training")


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top, commands = build_parser(
        "cspine-training", "Train and use models that find fractures in vertebra crops."
    )

    boost = add_command(
        commands,
        "boost",
        _boost,
        "train a model in rounds",
        "STORE RUN --preset demo --rounds 3 --set augment.noise=0.02",
    )
    boost.add_argument("store", metavar="STORE", help="folder or URL of the store")
    boost.add_argument("run", metavar="RUN", type=Path, help="folder to write to, or to resume")
    boost.add_argument(
        "--model",
        type=Path,
        metavar="DIR",
        help="start from this local checkpoint, a folder written by save_pretrained",
    )
    _add_presets(boost, PRESETS)
    RUN_SETTINGS.add_to(boost)

    localizer = add_command(
        commands,
        "localizer",
        _localizer,
        "train the network that finds C1 to C7 in studies without masks",
        "STORE localizer.onnx --preset demo --set augment.noise_hu=40",
    )
    localizer.add_argument("store", metavar="STORE", help="store of a pipeline run with masks")
    localizer.add_argument("out", metavar="OUT.onnx", type=Path, help="file to write")
    _add_presets(localizer, LOCALIZER_PRESETS)
    LOCALIZER_SETTINGS.add_to(localizer)

    blend = add_command(
        commands,
        "blend",
        _blend,
        "combine runs into a weighted ensemble",
        "BLEND RUN OTHER --store STORE",
    )
    blend.add_argument("out", metavar="OUT", type=Path, help="folder to write to")
    blend.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="folders of finished runs")
    blend.add_argument(
        "--store", metavar="STORE", required=True, help="store with the labels that fit the weights"
    )

    evaluate = add_command(
        commands,
        "evaluate",
        _evaluate,
        "score RUN on its locked test patients",
        "RUN STORE",
    )
    _add_run_and_store(evaluate)

    predict = add_command(
        commands,
        "predict",
        _predict,
        "predict the fracture probabilities of every study of STORE",
        "RUN STORE predictions.csv --explain pages",
    )
    _add_run_and_store(predict)
    predict.add_argument("out", metavar="OUT", type=Path, help="csv file to write")
    predict.add_argument(
        "--submission",
        metavar="sample_submission.csv",
        help="make OUT a submission of these rows; the table is written beside it, as .table.csv",
    )
    predict.add_argument(
        "--stack",
        action="store_true",
        help="use the ensemble of rounds in place of the one model",
    )
    predict.add_argument(
        "--explain",
        type=Path,
        metavar="FOLDER",
        help="write a page and a JSON file of each study to this folder",
    )

    report = add_command(
        commands, "report", _report, "write a page about an evaluated RUN", "RUN training.html"
    )
    report.add_argument("run", metavar="RUN", type=Path, help="folder of an evaluated run")
    report.add_argument("out", metavar="OUT.html", type=Path, help="page to write")
    return top


def _add_presets(command: argparse.ArgumentParser, presets: Mapping[str, Any]) -> None:
    command.add_argument(
        "--preset",
        choices=sorted(presets),
        default="default",
        help="settings to start from, before --config, --set and flags (default: default)",
    )


def _add_run_and_store(command: argparse.ArgumentParser) -> None:
    command.add_argument("run", metavar="RUN", type=Path, help="folder of a finished run")
    command.add_argument("store", metavar="STORE", help="folder or URL of the store")


def _boost(options: argparse.Namespace) -> int:
    config = RUN_SETTINGS.read(options, PRESETS[options.preset])
    model = options.model
    if model is None and options.config is not None:
        model = read_document(options.config).get("start")  # of the run that is repeated
    run = api.boost(options.store, options.run, config, model=model)
    if not is_first_process():
        return 0
    from training.rounds.journal import summarise
    from training.runs import OUT_OF_FOLD

    if api.trains_every_fold(config):
        rows: Rows = [("folds", config.split.folds)]
        tell_summary("boost", rows, options, {"out_of_fold": run.path / OUT_OF_FOLD})
    else:
        tell_summary("boost", summarise(run), options, {"model": run.model})
    return 0


def _blend(options: argparse.Namespace) -> int:
    from training.evaluation.blend import blend
    from training.runs import RunFolder

    runs = [RunFolder(path) for path in options.runs]
    found = blend(api.open_store(options.store), RunFolder(options.out), runs)
    rows: Rows = [("studies that no run trained on", found.studies), ("loss", found.loss)]
    for name, weight, loss in zip(found.names, found.weights, found.losses, strict=True):
        rows.append((name, f"weight {weight:.3f}, alone {loss:.4f}"))
    if options.json:
        rows = list(asdict(found).items())
    tell_summary("blend", rows, options, {"blend": options.out})
    return 0


def _localizer(options: argparse.Namespace) -> int:
    config = LOCALIZER_SETTINGS.read(options, LOCALIZER_PRESETS[options.preset])
    card = api.train_localizer(options.store, options.out, config)
    rows: Rows = [("levels named wrongly", card.misnamed)]
    if options.json:
        rows.append(("card", card.to_json()))
    else:
        from training.localizer.scores import show_scores

        result_console().print(show_scores(card))
    tell_summary("localizer", rows, options, {"localizer": options.out})
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    found = api.evaluate(options.run, options.store)
    if options.json:
        tell_summary("evaluate", list(asdict(found).items()), options)
        return 0
    from training.evaluation.evaluate import show

    for table in show(found):
        result_console().print(table)
    tell_summary("evaluate", found.rows(), options)
    print(found.headline)
    return 0


def _predict(options: argparse.Namespace) -> int:
    written = api.predict_and_write(
        options.run,
        options.store,
        options.out,
        submission=options.submission,
        stack=options.stack,
        explain=options.explain,
    )
    by_prior = int(written.predictions.by_prior.sum())
    rows: Rows = [("studies", len(written.predictions.studies))]
    rows += [("levels_without_crop_by_prior", by_prior), *written.counts.items()]
    tell_summary("predict", rows, options, written.files)
    return 0


def _report(options: argparse.Namespace) -> int:
    from training.report.page import render_report
    from training.runs import RunFolder

    page, evaluation = render_report(RunFolder(options.run))
    size = write_output(options.out, page)
    if not options.json:
        print(evaluation.headline)
    tell_summary("report", [("bytes", size)], options, {"report": options.out})
    return 0


if __name__ == "__main__":
    sys.exit(main())
