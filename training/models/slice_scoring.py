"""Logits of slices, and from them a score for each vertebra; no probability yet.

The score of a vertebra is the mean of its five largest logits (all, where it has fewer): a fracture
is seen in a part of the slices only. Probabilities come from `training.metrics.calibration`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from storage_schemas.vertebrae import CERVICAL
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
"""Slices whose logits make a vertebra's score; as in the competition's winning solutions."""
_BATCH = 64


@dataclass(frozen=True)
class LevelScores:
    """The scores of some studies, C1 to C7.

    Parameters
    ----------
    score : ndarray, shape (studies, 7), float64
        In logits; NaN where there is no crop.
    peak : ndarray, shape (studies, 7), int64
        The slice of the crop with the largest logit; -1 where there is no crop.
    patient : ndarray, shape (studies,), float64, or None
        What a model says of the whole patient, in logits, NaN where there is no crop; None of a
        model that looks at one level at a time.
    """

    score: NDArray[np.float64]
    peak: NDArray[np.int64]
    patient: NDArray[np.float64] | None = None

    def rows(self, chosen: slice) -> "LevelScores":
        """The scores of some of the studies."""
        patient = None if self.patient is None else self.patient[chosen]
        return LevelScores(self.score[chosen], self.peak[chosen], patient)


@torch.no_grad()
def slice_logits(
    model: PreTrainedModel, inputs: InputConfig, buffer: CropBuffer, index: SliceIndex
) -> NDArray[np.float32]:
    """The logit of each input, shape (inputs,), in the order of the index."""
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
    """Score each level of each study.

    Parameters
    ----------
    model, inputs
        From `training.models.slice_model`.
    buffer : CropBuffer
        Of these studies, at least.
    studies : sequence of Study
    """
    rows = {study.study: row for row, study in enumerate(studies)}
    crops = [i for i, vertebra in enumerate(buffer.vertebrae) if vertebra.study in rows]
    index = index_slices(buffer, crops, inputs.trim_mm)
    logits = slice_logits(model, inputs, buffer, index)
    shape = (len(studies), len(CERVICAL))
    scores = LevelScores(np.full(shape, np.nan), np.full(shape, -1, np.int64))
    for crop in crops:
        vertebra = buffer.vertebrae[crop]
        place = rows[vertebra.study], CERVICAL.index(vertebra.level)
        mine = index.crop == crop
        scores.score[place] = np.sort(logits[mine])[-TOP:].mean()
        scores.peak[place] = index.z[mine][logits[mine].argmax()]
    return scores
