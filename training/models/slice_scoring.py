"""Logits of slices, and the vertebra scores computed from them.

The score of a vertebra is the mean of its five largest logits (of all, if it has fewer), because a
fracture is visible in some of the slices only. Probabilities come from
`training.metrics.calibration`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from training.config import InputConfig
from training.data.cohort import Study
from training.data.crop_buffer import CropBuffer
from training.data.inputs import (
    SliceIndex,
    gather_slices,
    identity_transforms,
    index_slices,
    make_pixels,
    normalise,
)
from training.devices import device, to_device

TOP = 5
"""Number of largest logits that are averaged, as in the competition's winning solutions."""
_BATCH = 64


@dataclass(frozen=True)
class LevelScores:
    """Scores of some studies by level.

    Parameters
    ----------
    score : ndarray, shape (studies, levels), float64
        Vertebra scores in logits; NaN without a crop.
    peak : ndarray, shape (studies, levels), int64
        Slice of the crop with the largest logit; -1 without a crop.
    patient : ndarray, shape (studies,), float64, or None
        Patient logit of the model, NaN without any crop; None for slice models.
    """

    score: NDArray[np.float64]
    peak: NDArray[np.int64]
    patient: NDArray[np.float64] | None = None

    def rows(self, chosen: slice) -> "LevelScores":
        """Return the scores of some of the studies."""
        patient = None if self.patient is None else self.patient[chosen]
        return LevelScores(self.score[chosen], self.peak[chosen], patient)


@torch.no_grad()
def slice_logits(
    model: PreTrainedModel, inputs: InputConfig, buffer: CropBuffer, index: SliceIndex
) -> NDArray[np.float32]:
    """Compute the logit of each input, shape (inputs,), in the order of the index."""
    model.eval().to(device())
    logits = []
    for start in range(0, len(index), _BATCH):
        part = slice(start, start + _BATCH)
        batch = to_device(gather_slices(buffer, index.crop[part], index.z[part]))
        pixels = make_pixels(batch, inputs, identity_transforms(len(batch["hu"])))
        logits.append(
            model(pixel_values=normalise(pixels, inputs)).logits[:, 0].float().cpu().numpy()
        )
    return np.concatenate(logits) if logits else np.empty(0, np.float32)


def score_studies(
    model: PreTrainedModel, inputs: InputConfig, buffer: CropBuffer, studies: Sequence[Study]
) -> LevelScores:
    """Compute the score of each level of each study.

    Parameters
    ----------
    model : PreTrainedModel
        Slice model.
    inputs : InputConfig
        Input settings of the model.
    buffer : CropBuffer
        Buffer that holds the studies' crops.
    studies : sequence of Study
        Studies to score.
    """
    rows = {study.study: row for row, study in enumerate(studies)}
    crops = [i for i, vertebra in enumerate(buffer.vertebrae) if vertebra.study in rows]
    index = index_slices(buffer, crops, inputs.trim_mm)
    logits = slice_logits(model, inputs, buffer, index)
    levels = buffer.targets.levels
    shape = (len(studies), len(levels))
    scores = LevelScores(np.full(shape, np.nan), np.full(shape, -1, np.int64))
    for crop in crops:
        vertebra = buffer.vertebrae[crop]
        place = rows[vertebra.study], levels.index(vertebra.level)
        mine = index.crop == crop
        scores.score[place] = np.sort(logits[mine])[-TOP:].mean()
        scores.peak[place] = index.z[mine][logits[mine].argmax()]
    return scores
