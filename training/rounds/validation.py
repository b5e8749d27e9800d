"""Validation of a model: calibration on one set of patients, the loss on another.

No round trains on these patients. Probabilities are fitted on the calibration patients and the loss
is computed on the guard patients, so that no candidate is scored on the data it was fitted to. Two
models are compared patient by patient.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from storage_schemas.targets import Targets
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
    """The studies of the validation sets, with their voxels.

    Parameters
    ----------
    calibration : tuple of Study
        Studies that the calibration is fitted on.
    guard : tuple of Study
        Studies that the loss is computed on.
    train : tuple of Study
        Training studies; only their labels are used, for the constants.
    buffer : CropBuffer
        Crops of the calibration and the guard studies.
    """

    calibration: tuple[Study, ...]
    guard: tuple[Study, ...]
    train: tuple[Study, ...]
    buffer: CropBuffer

    @property
    def best_constant(self) -> float:
        """Guard loss of the constants that are optimal for the training patients."""
        constants = best_constants(label_table(self.train), self.targets)
        return competition_loss(label_table(self.guard), constants, self.targets)

    @property
    def targets(self) -> Targets:
        """Targets of the run."""
        return self.buffer.targets


@dataclass(frozen=True)
class ValidationResult:
    """The validation result of a model.

    Parameters
    ----------
    calibration : Calibration
        Calibration that was fitted for the model.
    calibrating : ndarray, shape (studies, targets), float64
        Probabilities of the calibration studies.
    guarding : ndarray, shape (studies, targets), float64
        Probabilities of the guard studies.
    loss : float
        The competition's loss on the guard studies.
    """

    calibration: Calibration
    calibrating: Floats
    guarding: Floats
    loss: float

    def to_json(self) -> dict[str, Any]:
        """Return JSON values that `from_json` reads."""
        return {
            "calibration": self.calibration.to_json(),
            "calibrating": self.calibrating.tolist(),
            "guarding": self.guarding.tolist(),
            "loss": self.loss,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "ValidationResult":
        """Read the output of `to_json`; raises KeyError or TypeError otherwise."""
        return cls(
            Calibration.from_json(document["calibration"]),
            np.array(document["calibrating"], np.float64),
            np.array(document["guarding"], np.float64),
            float(document["loss"]),
        )


def validate(model: PreTrainedModel, inputs: InputConfig, sets: ValidationSets) -> ValidationResult:
    """Fit the calibration of a model, and compute its loss on the guard studies.

    Parameters
    ----------
    model : PreTrainedModel
        Model of any kind.
    inputs : InputConfig
        Input settings of the model.
    sets : ValidationSets
        Calibration and guard studies.
    """
    scores = _share_scores(model, inputs, sets.buffer, sets.calibration + sets.guard)
    many = len(sets.calibration)
    fitted, guarded = scores.rows(slice(many)), scores.rows(slice(many, None))
    calibration = fit_calibration(
        fitted.score,
        label_table(sets.calibration),
        label_table(sets.train),
        sets.targets,
        fitted.patient,
    )
    guarding = calibration.probabilities(guarded.score, guarded.patient)
    return ValidationResult(
        calibration,
        calibration.probabilities(fitted.score, fitted.patient),
        guarding,
        competition_loss(label_table(sets.guard), guarding, sets.targets),
    )


def paired_gain(
    sets: ValidationSets, before: ValidationResult, after: ValidationResult
) -> tuple[float, float]:
    """Compute the mean decrease of the loss per guard patient, and its standard error.

    Both models are scored on the same patients, so most of the variation between patients cancels.

    Parameters
    ----------
    sets : ValidationSets
        Validation sets that both results were computed on.
    before, after : ValidationResult
        Results of the incumbent and of the candidate.

    Returns
    -------
    gain : float
        Mean decrease of the loss over the patients.
    error : float
        Standard error of the mean; infinite for a single patient.
    """
    labels = label_table(sets.guard)
    gains = mean_by_patient(
        sets.guard,
        exam_losses(labels, before.guarding, sets.targets)
        - exam_losses(labels, after.guarding, sets.targets),
    )
    if gains.size < 2:
        return float(gains.mean()), np.inf
    return float(gains.mean()), float(gains.std(ddof=1) / np.sqrt(gains.size))


def mean_by_patient(studies: Sequence[Study], values: Floats) -> Floats:
    """Average values over the studies of each patient, shape (patients,)."""
    names, place = np.unique([study.patient for study in studies], return_inverse=True)
    return np.bincount(place, values) / np.bincount(place, minlength=len(names))


def _share_scores(
    model: PreTrainedModel, inputs: InputConfig, buffer: CropBuffer, studies: Sequence[Study]
) -> LevelScores:
    """Score the studies, divided among the ranks."""
    if ranks() == 1:
        return score_any(model, inputs, buffer, studies)
    mine = score_any(model, inputs, buffer, studies[rank() :: ranks()])
    score = np.zeros((len(studies), len(buffer.targets.levels)))
    peak = np.zeros_like(score)
    score[rank() :: ranks()], peak[rank() :: ranks()] = mine.score, mine.peak
    patient = None
    if mine.patient is not None:
        patient = np.zeros(len(studies))
        patient[rank() :: ranks()] = mine.patient
        patient = gather_rows(patient)
    return LevelScores(gather_rows(score), gather_rows(peak).astype(np.int64), patient)
