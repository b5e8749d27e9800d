"""Probabilities for studies, as a table and as the competition's submission."""

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage_schemas.annotations import STUDY_COLUMN, read_row_ids
from storage_schemas.errors import UsageError
from storage_schemas.store import StudyStore
from storage_schemas.vertebrae import LABEL_COLUMNS
from training.calibration import Calibration
from training.cohort import Study
from training.models import load_model
from training.runs import CALIBRATION, RunFolder
from training.scoring import LevelScores, score_studies
from training.shards import RoundShards, open_shards

_STUDIES_AT_ONCE = 64
"""Of which the voxels lie on the disk at the same time."""

Look = Callable[[RoundShards, Sequence[Study], LevelScores], None]


@dataclass(frozen=True)
class Predictions:
    """What a run says about some studies.

    Parameters
    ----------
    studies : tuple of str
    probabilities : ndarray, shape (studies, 8), float64
        In the order of `LABEL_COLUMNS`.
    by_prior : ndarray, shape (studies,), int64
        Levels without a crop, which got the prior.
    scores : ndarray, shape (studies, 7), float64
        Of C1 to C7, in logits; NaN where there is no crop.
    """

    studies: tuple[str, ...]
    probabilities: NDArray[np.float64]
    by_prior: NDArray[np.int64]
    scores: NDArray[np.float64]


def read_calibration(run: RunFolder) -> Calibration:
    """Read the calibration of the model that a run offers.

    Raises
    ------
    UsageError
        ``config-invalid`` where the run has no such model yet.
    """
    document = run.read(f"{run.model.name}/{CALIBRATION}")
    try:
        return Calibration.from_json(document)
    except (TypeError, AttributeError) as error:
        raise UsageError("config-invalid", f"{CALIBRATION}: {error}", key=str(run.path)) from None


def predict_studies(
    store: StudyStore,
    run: RunFolder,
    studies: Sequence[Study],
    advance: Callable[[], None],
    look: Look = lambda shards, studies, scores: None,
) -> Predictions:
    """Predict studies with the model that a run offers.

    Parameters
    ----------
    store : StudyStore
    run : RunFolder
    studies : sequence of Study
        Labels are not looked at.
    advance : callable
        Called after each crop is read.
    look : callable
        Gets the voxels and the scores of a part of the studies, while both are there.

    Raises
    ------
    UsageError
        ``config-invalid`` or ``model-invalid``.
    StoreError
        Of a shard that is missing or damaged.
    """
    calibration = read_calibration(run)
    model, inputs = load_model(run.model)
    parts = []
    for start in range(0, len(studies), _STUDIES_AT_ONCE):
        part = studies[start : start + _STUDIES_AT_ONCE]
        with open_shards(store, part, run.path, advance) as shards:
            scores = score_studies(model, inputs, shards, part)
            look(shards, part, scores)
        parts.append(scores.score)
    scores_of_all = np.concatenate([*parts, np.empty((0, len(LABEL_COLUMNS) - 1))])
    return Predictions(
        studies=tuple(study.study for study in studies),
        probabilities=calibration.probabilities(scores_of_all),
        by_prior=np.isnan(scores_of_all).sum(axis=1),
        scores=scores_of_all,
    )


def write_table(predictions: Predictions, path: Path) -> None:
    """Write one row a study: the eight probabilities, and how many of the levels had no crop."""
    header = [STUDY_COLUMN, *LABEL_COLUMNS, "levels_by_prior"]
    rows = (
        [study, *(repr(p) for p in probabilities), by_prior]
        for study, probabilities, by_prior in zip(
            predictions.studies,
            predictions.probabilities.tolist(),
            predictions.by_prior.tolist(),
            strict=True,
        )
    )
    _write_csv(path, header, rows)


def write_submission(
    predictions: Predictions, priors: Sequence[float], sample: str, path: Path
) -> dict[str, int]:
    """Write a submission with exactly the rows of a sample submission, in its order.

    Parameters
    ----------
    predictions : Predictions
    priors : sequence of 8 floats
        For studies that were not predicted.
    sample : str
        URL of ``sample_submission.csv`` or ``test.csv``.
    path : Path

    Returns
    -------
    dict of str to int
        ``rows``, and ``rows_of_unknown_studies``, which got the prior.

    Raises
    ------
    UsageError
        ``csv-invalid`` or ``source-not-found``.
    """
    wanted = read_row_ids(sample)
    known: Mapping[str, Sequence[float]] = dict(
        zip(predictions.studies, predictions.probabilities.tolist(), strict=True)
    )
    rows = [
        [row_id, repr(known.get(study, priors)[LABEL_COLUMNS.index(target)])]
        for row_id, study, target in wanted
    ]
    _write_csv(path, ["row_id", "fractured"], iter(rows))
    unknown = sum(study not in known for _, study, _ in wanted)
    return {"rows": len(rows), "rows_of_unknown_studies": unknown}


def _write_csv(path: Path, header: list[str], rows: Iterator[list[Any]]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(header)
            writer.writerows(rows)
    except OSError as error:
        reason = f"cannot be written: {error.strerror}"
        raise UsageError("config-invalid", reason, key=str(path)) from None
