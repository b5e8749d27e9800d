"""Patients that no round trains on: the calibration patients fit, the guard patients judge.

A model gets its probabilities from the calibration patients and its loss from the guard patients,
so that no candidate is judged where it was fitted. Two models are compared patient by patient.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from storage_schemas.vertebrae import CERVICAL
from training.config import InputConfig
from training.data.cohort import Study, label_table
from training.data.crop_buffer import CropBuffer
from training.metrics.calibration import Calibration, fit_calibration
from training.metrics.competition import best_constants, competition_loss, exam_losses
from training.models.kinds import score_any
from training.models.slice_scoring import LevelScores
from training.ranks import gather_rows, rank, ranks

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ValidationSets:
    """The studies that judge, with their voxels.

    Parameters
    ----------
    calibration, guard, train : tuple of Study
        Of the training studies only the labels are used: they give the constants.
    buffer : CropBuffer
        Of the calibration and the guard studies.
    """

    calibration: tuple[Study, ...]
    guard: tuple[Study, ...]
    train: tuple[Study, ...]
    buffer: CropBuffer

    @property
    def best_constant(self) -> float:
        """The loss on the guard of the best constants of the training patients."""
        return competition_loss(label_table(self.guard), best_constants(label_table(self.train)))


@dataclass(frozen=True)
class ValidationResult:
    """What the judges say of a model.

    Parameters
    ----------
    calibration : Calibration
        Fitted for this model.
    calibrating, guarding : ndarray, shape (studies, 8), float64
        Its probabilities for the calibration and for the guard studies.
    loss : float
        The competition's loss on the guard studies.
    """

    calibration: Calibration
    calibrating: Floats
    guarding: Floats
    loss: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` reads them back."""
        return {
            "calibration": self.calibration.to_json(),
            "calibrating": self.calibrating.tolist(),
            "guarding": self.guarding.tolist(),
            "loss": self.loss,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "ValidationResult":
        """Read what `to_json` wrote; raises KeyError or TypeError on anything else."""
        return cls(
            Calibration.from_json(document["calibration"]),
            np.array(document["calibrating"], np.float64),
            np.array(document["guarding"], np.float64),
            float(document["loss"]),
        )


def validate(model: PreTrainedModel, inputs: InputConfig, sets: ValidationSets) -> ValidationResult:
    """Score the judging patients, fit the probabilities on some, take the loss on the others."""
    scores = _share_scores(model, inputs, sets.buffer, sets.calibration + sets.guard)
    many = len(sets.calibration)
    fitted, guarded = scores.rows(slice(many)), scores.rows(slice(many, None))
    calibration = fit_calibration(
        fitted.score, label_table(sets.calibration), label_table(sets.train), fitted.patient
    )
    guarding = calibration.probabilities(guarded.score, guarded.patient)
    return ValidationResult(
        calibration,
        calibration.probabilities(fitted.score, fitted.patient),
        guarding,
        competition_loss(label_table(sets.guard), guarding),
    )


def paired_gain(
    sets: ValidationSets, before: ValidationResult, after: ValidationResult
) -> tuple[float, float]:
    """By how much the loss of a guard patient falls, on average, and the error of that mean.

    The same patients are scored twice, so most of what differs between patients cancels out.

    Returns
    -------
    float
        Mean over the patients.
    float
        Its standard error; infinite of a single patient.
    """
    gains = mean_by_patient(
        sets.guard,
        exam_losses(label_table(sets.guard), before.guarding)
        - exam_losses(label_table(sets.guard), after.guarding),
    )
    if gains.size < 2:
        return float(gains.mean()), np.inf
    return float(gains.mean()), float(gains.std(ddof=1) / np.sqrt(gains.size))


def mean_by_patient(studies: Sequence[Study], values: Floats) -> Floats:
    """The mean over each patient's studies, shape (patients,)."""
    names, place = np.unique([study.patient for study in studies], return_inverse=True)
    return np.bincount(place, values) / np.bincount(place, minlength=len(names))


def _share_scores(
    model: PreTrainedModel, inputs: InputConfig, buffer: CropBuffer, studies: Sequence[Study]
) -> LevelScores:
    """Score the studies, every rank its part of them."""
    if ranks() == 1:
        return score_any(model, inputs, buffer, studies)
    mine = score_any(model, inputs, buffer, studies[rank() :: ranks()])
    score = np.zeros((len(studies), len(CERVICAL)))
    peak = np.zeros((len(studies), len(CERVICAL)))
    score[rank() :: ranks()], peak[rank() :: ranks()] = mine.score, mine.peak
    patient = None
    if mine.patient is not None:
        patient = np.zeros(len(studies))
        patient[rank() :: ranks()] = mine.patient
        patient = gather_rows(patient)
    return LevelScores(gather_rows(score), gather_rows(peak).astype(np.int64), patient)
