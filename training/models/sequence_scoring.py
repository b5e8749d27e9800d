"""Scores of a sequence model, for validation, calibration and predictions."""

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from training.config import InputConfig
from training.data.cohort import Study
from training.data.crop_buffer import CropBuffer
from training.devices import device, to_device
from training.models.feature_cache import cache_features, encode_patients
from training.models.sequence_inputs import (
    PatientIndex,
    gather_patients,
    index_patients,
    make_patient_pixels,
)
from training.models.sequence_model import CervicalSequenceModel, SequenceOutput
from training.models.slice_scoring import LevelScores
from training.ranks import rank
from training.runs import FEATURES

_STUDIES_AT_ONCE = 4
"""Number of studies that are encoded together."""


def is_frozen(model: CervicalSequenceModel) -> bool:
    """Return whether the encoder is frozen and only the heads are trained."""
    return not any(parameter.requires_grad for parameter in model.encoder.parameters())


def find_features(
    model: CervicalSequenceModel, inputs: InputConfig, buffer: CropBuffer, index: PatientIndex
) -> NDArray[np.float16]:
    """Compute the features of all positions, cached in the run folder if the encoder is frozen.

    Returns
    -------
    ndarray, shape (studies, levels, positions, features), float16
        Features; 0 for missing positions.
    """
    if is_frozen(model) and buffer.folder is not None:
        return cache_features(buffer.folder / FEATURES / str(rank()), model, inputs, buffer, index)
    return encode_patients(model, inputs, buffer, index)


@torch.no_grad()
def run_sequence_model(
    model: CervicalSequenceModel, inputs: InputConfig, buffer: CropBuffer, studies: Sequence[str]
) -> tuple[PatientIndex, SequenceOutput]:
    """Run a sequence model on some studies.

    Parameters
    ----------
    model : CervicalSequenceModel
        Model to run; it is moved to the device.
    inputs : InputConfig
        Input settings of the model.
    buffer : CropBuffer
        Buffer that holds the studies' crops.
    studies : sequence of str
        Keys of the studies.

    Returns
    -------
    index : PatientIndex
        Crops and positions that were read.
    output : SequenceOutput
        Outputs on the CPU, without features and patches.
    """
    index = index_patients(buffer, studies, model.config.positions, inputs.trim_mm)
    model.eval().to(device())
    kept = find_features(model, inputs, buffer, index) if is_frozen(model) else None
    parts = []
    for start in range(0, len(index), _STUDIES_AT_ONCE):
        part = slice(start, start + _STUDIES_AT_ONCE)
        if kept is not None:
            features = torch.from_numpy(kept[part].astype(np.float32)).to(device())
            valid = torch.from_numpy(index[part].valid).to(device())
            parts.append(model(features=features, valid=valid))
        else:
            batch = to_device(gather_patients(buffer, index[part], inputs))
            parts.append(model(make_patient_pixels(batch, inputs), batch["valid"]))
    names = ("logits", "vertebra_logits", "position_logits", "weights")
    joined = {name: torch.cat([part[name].float().cpu() for part in parts]) for name in names}
    return index, SequenceOutput(**joined)


def score_patients(
    model: PreTrainedModel, inputs: InputConfig, buffer: CropBuffer, studies: Sequence[Study]
) -> LevelScores:
    """Compute the score of each level and each patient.

    The peak of a level is the slice with the largest weight.
    """
    shape = (len(studies), len(buffer.targets.levels))
    scores = LevelScores(
        np.full(shape, np.nan), np.full(shape, -1, np.int64), np.full(len(studies), np.nan)
    )
    if not studies or scores.patient is None:
        return scores
    index, output = run_sequence_model(
        cast(CervicalSequenceModel, model), inputs, buffer, [study.study for study in studies]
    )
    present = index.crop >= 0
    logits = cast(Tensor, output.logits).double().numpy()
    scores.score[present] = logits[:, 1:][present]
    scores.patient[present.any(axis=1)] = logits[present.any(axis=1), 0]
    best = cast(Tensor, output.weights).numpy().argmax(axis=2)
    scores.peak[present] = np.take_along_axis(index.z, best[..., None], axis=2)[..., 0][present]
    return scores
