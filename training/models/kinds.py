"""Kinds of models: the functions that the round loop and the predictions call.

The ``model_type`` in config.json identifies the kind of a saved model; unknown types are slice
models. Rounds, candidates, validation, calibration and folders are the same for all kinds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from storage_schemas.targets import Targets
from training.config import InputConfig, RunConfig
from training.data.cohort import Study
from training.data.crop_buffer import CropBuffer
from training.models.sequence_model import MODEL_TYPE, load_sequence_model
from training.models.sequence_scoring import score_patients
from training.models.sequence_training import (
    count_positions,
    refresh_sequences,
    start_sequence_model,
    train_sequences,
)
from training.models.slice_model import build_model, load_model, read_model_type, start_model
from training.models.slice_scoring import LevelScores, score_studies
from training.models.slice_training import count_slices, refresh_statistics, train_slices
from training.optimization.trainer import RoundWork, Trained

Model = tuple[PreTrainedModel, InputConfig]


@dataclass(frozen=True)
class Kind:
    """The functions of one kind of model.

    Parameters
    ----------
    start : callable
        Builds a new model for some targets, or loads a checkpoint to start from.
    load : callable
        Loads a folder written by `training.models.slice_model.save_model`, with strict checks of
        all weights.
    count : callable
        Counts the trainable inputs of a study, from the tables alone.
    train : callable
        Trains a model in place on the crops of a round, see `training.optimization.trainer.fit`.
    refresh : callable
        Recomputes batch-normalisation statistics on a round's inputs, if the model has any.
    score : callable
        Computes a logit for each level of each study, in the order of the studies.
    """

    start: Callable[[RunConfig, Path | None, Targets], Model]
    load: Callable[[Path], Model]
    count: Callable[[Study, RunConfig], int]
    train: Callable[[PreTrainedModel, InputConfig, CropBuffer, RunConfig, RoundWork], Trained]
    refresh: Callable[[PreTrainedModel, InputConfig, CropBuffer, RunConfig, RoundWork], None]
    score: Callable[[PreTrainedModel, InputConfig, CropBuffer, Sequence[Study]], LevelScores]


def _start_slice_model(config: RunConfig, folder: Path | None, targets: Targets) -> Model:
    del targets  # a slice model scores slices of any level
    if folder is None:
        return build_model(config.model, config.inputs, config.seed), config.inputs
    return start_model(folder, config.inputs, config.seed)


SLICE = Kind(
    start=_start_slice_model,
    load=load_model,
    count=count_slices,
    train=train_slices,
    refresh=refresh_statistics,
    score=score_studies,
)

SEQUENCE = Kind(
    start=start_sequence_model,
    load=load_sequence_model,
    count=count_positions,
    train=train_sequences,
    refresh=refresh_sequences,
    score=score_patients,
)

KINDS: dict[str, Kind] = {"slice": SLICE, MODEL_TYPE: SEQUENCE}
"""Kinds by the name that recipes use; for all but slice models it is the ``model_type``."""


def kind_of(model_type: str) -> Kind:
    """Return the kind of a model by the ``model_type`` of its configuration."""
    return KINDS.get(model_type, SLICE)


def load_any(folder: Path) -> Model:
    """Load a saved model of any kind.

    Raises
    ------
    UsageError
        ``model-invalid`` from `Kind.load`.
    """
    return kind_of(read_model_type(folder)).load(folder)  # the loader raises a precise error


def score_any(
    model: PreTrainedModel, inputs: InputConfig, buffer: CropBuffer, studies: Sequence[Study]
) -> LevelScores:
    """Score studies with a model of any kind."""
    return kind_of(model.config.model_type).score(model, inputs, buffer, studies)
