"""Fracture probabilities of studies, as a table and as a competition submission."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from presentation.output import csv_text, write_output
from storage_schemas.annotations import STUDY_COLUMN, read_row_ids
from storage_schemas.errors import UsageError
from storage_schemas.store import StudyStore
from storage_schemas.targets import Targets
from training.config import InputConfig
from training.data.cohort import Study
from training.data.crop_buffer import CropBuffer, open_buffer
from training.evaluation.members import Member, read_members
from training.metrics.calibration import Calibration
from training.metrics.ensemble import RoundEnsemble, average_predictions
from training.models.kinds import load_any, score_any
from training.models.slice_scoring import LevelScores
from training.runs import ROUND_ENSEMBLE, RunFolder

_STUDIES_AT_ONCE = 64
"""Number of studies whose voxels are on the disk at the same time."""

Floats = NDArray[np.float64]
Observe = Callable[[PreTrainedModel, InputConfig, CropBuffer, Sequence[Study], LevelScores], None]


@dataclass(frozen=True)
class Predictions:
    """Predictions of a run for some studies.

    Parameters
    ----------
    studies : tuple of str
        Keys of the studies.
    probabilities : ndarray, shape (studies, targets), float64
        Fracture probabilities, in the order of `Targets.columns`.
    by_prior : ndarray, shape (studies,), int64
        Number of levels without a crop, which get the prior.
    scores : ndarray, shape (studies, levels), float64
        Vertebra scores in logits, NaN without a crop; in an ensemble, those of the member with the
        largest weight.
    targets : Targets
        Targets of the run.
    ensemble : ndarray, shape (studies, targets), float64, or None
        Probabilities of the ensemble of rounds; None if not requested or not available.
    """

    studies: tuple[str, ...]
    probabilities: Floats
    by_prior: NDArray[np.int64]
    scores: Floats
    targets: Targets
    ensemble: Floats | None = None

    def with_ensemble(self, run: RunFolder) -> "Predictions":
        """Return a copy with the probabilities of the ensemble of rounds.

        Parameters
        ----------
        run : RunFolder
            Run that was predicted with, for the error message.

        Raises
        ------
        UsageError
            ``config-invalid`` if there is no ensemble.
        """
        if self.ensemble is None:
            reason = f"no {ROUND_ENSEMBLE}: fewer than two rounds were accepted"
            raise UsageError("config-invalid", reason, key=str(run.path))
        return replace(self, probabilities=self.ensemble)


def read_round_ensemble(run: RunFolder) -> RoundEnsemble | None:
    """Read the ensemble of a run's rounds; return None if it has none.

    Raises
    ------
    UsageError
        ``config-invalid`` if the document is damaged.
    """
    if not run.has(ROUND_ENSEMBLE):
        return None
    try:
        return RoundEnsemble.from_json(run.read(ROUND_ENSEMBLE))
    except (TypeError, KeyError, ValueError) as error:
        raise UsageError(
            "config-invalid", f"{ROUND_ENSEMBLE}: {error}", key=str(run.path)
        ) from None


def predict_studies(
    store: StudyStore,
    run: RunFolder,
    studies: Sequence[Study],
    advance: Callable[[], None],
    observe: Observe = lambda model, inputs, buffer, studies, scores: None,
    *,
    ensemble: bool = False,
) -> Predictions:
    """Predict studies with a run's model or ensemble.

    Parameters
    ----------
    store : StudyStore
        Store that the crops are read from.
    run : RunFolder
        Finished run, or an ensemble of runs.
    studies : sequence of Study
        Studies to predict; their labels are not used.
    advance : callable
        Called without arguments after each crop is read.
    observe : callable
        Called for each batch of studies with the model (in an ensemble the one with the largest
        weight), its inputs, the voxels, the studies and the scores.
    ensemble : bool
        Whether to predict with the ensemble of rounds too, if there is one.

    Raises
    ------
    UsageError
        ``config-invalid`` or ``model-invalid``.
    StoreError
        ``array-missing`` or ``array-damaged`` if a shard cannot be read.
    """
    targets = run.targets()
    members = [_load(member) for member in read_members(run)]
    stack = read_round_ensemble(run) if ensemble else None
    rounds = (
        []
        if stack is None
        else [
            _load(Member(run.round_model(number), weight))
            for number, weight in zip(stack.rounds, stack.weights, strict=True)
        ]
    )
    masks = any(entry.inputs.mask for entry in (*members, *rounds))
    scores = [_no_rows(len(targets.levels))]
    probabilities, averaged = [_no_rows(len(targets))], [_no_rows(len(targets))]
    for start in range(0, len(studies), _STUDIES_AT_ONCE):
        part = studies[start : start + _STUDIES_AT_ONCE]
        with open_buffer(store, part, targets, run.path, advance, masks=masks) as buffer:
            found = [entry.score(buffer, part) for entry in members]
            observe(members[0].model, members[0].inputs, buffer, part, found[0])
            scores.append(found[0].score)
            probabilities.append(_average(members, found))
            if rounds:
                averaged.append(_average(rounds, [entry.score(buffer, part) for entry in rounds]))
    return Predictions(
        studies=tuple(study.study for study in studies),
        probabilities=np.concatenate(probabilities),
        by_prior=np.isnan(np.concatenate(scores)).sum(axis=1),
        scores=np.concatenate(scores),
        targets=targets,
        ensemble=None if stack is None else np.concatenate(averaged),
    )


@dataclass(frozen=True)
class _Loaded:
    """A member in memory."""

    weight: float
    model: PreTrainedModel
    inputs: InputConfig
    calibration: Calibration

    def score(self, buffer: CropBuffer, studies: Sequence[Study]) -> LevelScores:
        return score_any(self.model, self.inputs, buffer, studies)


def _load(member: Member) -> _Loaded:
    calibration = member.calibration()
    return _Loaded(member.weight, *load_any(member.folder), calibration)


def _average(members: Sequence[_Loaded], scores: Sequence[LevelScores]) -> Floats:
    tables = [
        entry.calibration.probabilities(found.score, found.patient)
        for entry, found in zip(members, scores, strict=True)
    ]
    return average_predictions([entry.weight for entry in members], tables)


def _no_rows(columns: int) -> Floats:
    return np.empty((0, columns))


def write_table(predictions: Predictions, path: Path) -> None:
    """Write a CSV table of the probabilities, with each study's number of levels without a crop."""
    header = [STUDY_COLUMN, *predictions.targets.columns, "levels_by_prior"]
    rows = (
        [study, *(repr(p) for p in probabilities), by_prior]
        for study, probabilities, by_prior in zip(
            predictions.studies,
            predictions.probabilities.tolist(),
            predictions.by_prior.tolist(),
            strict=True,
        )
    )
    write_output(path, csv_text(header, rows))


def write_submission(
    predictions: Predictions, priors: Sequence[float], sample: str, path: Path
) -> dict[str, int]:
    """Write a submission with the rows of a sample submission, in the same order.

    Parameters
    ----------
    predictions : Predictions
        Predicted studies.
    priors : sequence of float
        Probabilities for studies that were not predicted, one for each target.
    sample : str
        URL of ``sample_submission.csv`` or ``test.csv``.
    path : Path
        CSV file to write.

    Returns
    -------
    dict of str to int
        ``rows``, and ``rows_of_unknown_studies``, which got the prior.

    Raises
    ------
    UsageError
        ``csv-invalid`` or ``source-not-found``.
    """
    columns = predictions.targets.columns
    wanted = read_row_ids(sample, predictions.targets)
    known: Mapping[str, Sequence[float]] = dict(
        zip(predictions.studies, predictions.probabilities.tolist(), strict=True)
    )
    rows = [
        [row_id, repr(known.get(study, priors)[columns.index(target)])]
        for row_id, study, target in wanted
    ]
    write_output(path, csv_text(["row_id", "fractured"], rows))
    unknown = sum(study not in known for _, study, _ in wanted)
    return {"rows": len(rows), "rows_of_unknown_studies": unknown}
