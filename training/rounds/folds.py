"""K-fold cross-validation: K runs of one recipe in one RUN, and their out-of-fold predictions.

The model of each fold is trained without the patients of that fold and predicts them. All folds
share the locked test patients. For weighted ensembles of runs see `training.evaluation.blend`.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from presentation.output import csv_text
from presentation.progress import say_event
from storage_schemas.annotations import STUDY_COLUMN
from storage_schemas.errors import UsageError
from storage_schemas.store import StudyStore
from training.config import RunConfig
from training.data.cohort import Study, labelled, read_cohort
from training.data.splits import Splits
from training.durable import write_text
from training.ranks import is_first
from training.rounds.boosting import boost
from training.rounds.cards import write_blend_card
from training.rounds.validation import ValidationResult
from training.runs import FOLDS, HISTORY, OUT_OF_FOLD, RUN_ENSEMBLE, SETTINGS, SPLITS, RunFolder

Floats = NDArray[np.float64]


def fold_runs(run: RunFolder) -> tuple[RunFolder, ...]:
    """Return the runs of a cross-validated run, or an empty tuple for a plain run."""
    if not run.has(FOLDS):
        return ()
    return tuple(RunFolder(run.path / name) for name in run.read(FOLDS)["runs"])


def boost_folds(
    store: StudyStore, run: RunFolder, config: RunConfig, start: Path | None, folds: int
) -> None:
    """Train one run for each fold and combine them.

    RUN offers the mean of the folds' models as an ensemble, and the out-of-fold predictions.

    Parameters
    ----------
    store : StudyStore
        Store whose tables hold labels.
    run : RunFolder
        Run folder; the run of fold k is its subfolder ``fold-k``.
    config : RunConfig
        Settings of every fold's run.
    start : Path or None
        Local checkpoint to start from; None builds a new model.
    folds : int
        Number of folds.

    Raises
    ------
    CspineError
        Any error of `boost`.
    """
    if is_first():
        run.create()
    names = [f"fold-{number}" for number in range(1, folds + 1)]
    for number, name in enumerate(names, start=1):
        split = replace(config.split, folds=folds, fold=number)
        if is_first():
            say_event("fold", fold=number, folds=folds)
        boost(store, RunFolder(run.path / name), replace(config, split=split), start)
    if is_first():
        cohort = read_cohort(store, store.targets())
        put_folds_together(run, names, labelled(cohort, store.url))


def put_folds_together(run: RunFolder, names: Sequence[str], studies: Sequence[Study]) -> None:
    """Combine the finished runs of the folds in RUN."""
    run.write(FOLDS, {"runs": list(names)})
    first = RunFolder(run.path / names[0])
    settings = first.read(SETTINGS)
    settings["config"]["split"] |= {"fold": 0}
    run.write(SETTINGS, settings)
    run.write(SPLITS, _splits_of_all(first))
    entries = [{"folder": f"{name}/model", "weight": 1 / len(names)} for name in names]
    run.write(RUN_ENSEMBLE, {"members": entries})
    write_blend_card(run)
    _write_out_of_fold(run, studies)


def _splits_of_all(fold: RunFolder) -> dict[str, Any]:
    """Splits of a cross-validated run: all patients but the test patients are training patients."""
    splits = Splits.from_json(fold.read(SPLITS))
    train = sorted({*splits.train, *splits.guard, *splits.calibration})
    return Splits(tuple(train), (), (), splits.test).to_json()


def held_out_predictions(run: RunFolder, studies: Sequence[Study]) -> dict[str, Floats]:
    """Return a run's probabilities for studies that its model was not trained on.

    For a plain run these are the calibration patients; the guard patients are excluded because they
    selected the model. For a cross-validated run they are all but the test patients.

    Parameters
    ----------
    run : RunFolder
        Finished run.
    studies : sequence of Study
        Labelled studies of the store.

    Returns
    -------
    dict of str to ndarray, shape (targets,)
        Probabilities by study.

    Raises
    ------
    UsageError
        ``config-invalid`` if RUN holds no finished run.
    """
    folds = fold_runs(run)
    if not folds:
        return _held_out_predictions(run, studies, ("calibration",))
    found: dict[str, Floats] = {}
    for fold in folds:
        found |= _held_out_predictions(fold, studies, ("calibration", "guard"))
    return found


def _held_out_predictions(
    run: RunFolder, studies: Sequence[Study], sides: Sequence[str]
) -> dict[str, Floats]:
    history = run.lines(HISTORY)
    if not history or not run.model.is_dir():
        raise UsageError("config-invalid", "RUN holds no finished run", key=str(run.path))
    splits = Splits.from_json(run.read(SPLITS))
    try:
        result = ValidationResult.from_json(run.read(run.validation_file(history[-1]["incumbent"])))
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError("config-invalid", f"judged: {error}", key=str(run.path)) from None
    found: dict[str, Floats] = {}
    tables = {"calibration": result.calibrating, "guard": result.guarding}
    for side in sides:
        chosen = splits.choose(studies, side)
        if len(chosen) != len(tables[side]):
            reason = f"STORE holds {len(chosen)} of the {len(tables[side])} {side} studies of RUN"
            raise UsageError("labels-missing", reason, key=str(run.path))
        found |= {study.study: row for study, row in zip(chosen, tables[side], strict=True)}
    return found


def _write_out_of_fold(run: RunFolder, studies: Sequence[Study]) -> None:
    found = held_out_predictions(run, studies)
    rows = ([study, *map(repr, row.tolist())] for study, row in sorted(found.items()))
    header = [STUDY_COLUMN, *run.targets().columns]
    write_text(run.path / OUT_OF_FOLD, csv_text(header, rows))
