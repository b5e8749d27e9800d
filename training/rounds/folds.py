"""K-fold cross-validation: K runs of one recipe below one RUN, and their out-of-fold predictions.

Each fold's model is trained without the patients of that fold and predicts them; the locked test
patients are the same in all folds. Not here: weighted ensembles of runs
(`training.evaluation.blend`).
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
from storage_schemas.vertebrae import LABEL_COLUMNS
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
    """The runs of a run in folds; empty of a plain run."""
    if not run.has(FOLDS):
        return ()
    return tuple(RunFolder(run.path / name) for name in run.read(FOLDS)["runs"])


def boost_folds(
    store: StudyStore, run: RunFolder, config: RunConfig, start: Path | None, folds: int
) -> None:
    """Train one run for each fold, below RUN, and put them together as one.

    Each fold's model is trained without that fold; RUN offers the plain mean of all, and what each
    says of its own fold: the out-of-fold predictions.

    Raises
    ------
    CspineError
        As `boost`.
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
        put_folds_together(run, names, labelled(read_cohort(store), store.url))


def put_folds_together(run: RunFolder, names: Sequence[str], studies: Sequence[Study]) -> None:
    """Make one run of finished runs of the folds that lie below it."""
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
    """Of a run in folds: what one fold holds out, another trains on, and the test is locked."""
    splits = Splits.from_json(fold.read(SPLITS))
    train = sorted({*splits.train, *splits.guard, *splits.calibration})
    return Splits(tuple(train), (), (), splits.test).to_json()


def held_out_predictions(run: RunFolder, studies: Sequence[Study]) -> dict[str, Floats]:
    """What a run says of studies that its model did not train on, by study.

    Of a plain run these are the calibration patients; the guard patients chose its model, and are
    left out. Of a run in folds they are all but the locked ones.

    Raises
    ------
    UsageError
        ``config-invalid`` where RUN holds no finished run.
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
            reason = f"STORE holds {len(chosen)} of its {len(tables[side])} {side} studies"
            raise UsageError("labels-missing", reason, key=str(run.path))
        found |= {study.study: row for study, row in zip(chosen, tables[side], strict=True)}
    return found


def _write_out_of_fold(run: RunFolder, studies: Sequence[Study]) -> None:
    found = held_out_predictions(run, studies)
    rows = ([study, *map(repr, row.tolist())] for study, row in sorted(found.items()))
    write_text(run.path / OUT_OF_FOLD, csv_text([STUDY_COLUMN, *LABEL_COLUMNS], rows))
