"""What a sequence model is asked to say: patients, vertebrae and positions, under known weights.

Patients are judged by the competition's loss of all eight targets, vertebrae by the cross-entropy
of their own logits under the same weights (1 whole, 2 broken), positions only where it is known
whether the slice shows the fracture: never by the label of their vertebra. Of a position both the
encoder's own opinion and that of the sequence are judged, so that the encoder has to see itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from storage_schemas.vertebrae import CERVICAL
from training.data.cohort import Study
from training.data.crop_buffer import CropBuffer
from training.metrics.competition import exam_weights
from training.models.sequence_inputs import PatientIndex
from training.models.sequence_model import SequenceOutput


@dataclass(frozen=True)
class PatientTargets:
    """What is known of some patients.

    Parameters
    ----------
    patient : ndarray, shape (patients, 8), float32
        0 or 1; NaN where unknown.
    patient_weight : ndarray, shape (patients, 8), float32
        Of each target in its exam, see `exam_weights`.
    vertebra : ndarray, shape (patients, 7), float32
        0 or 1, NaN where there is no crop or no label, or where it is known that none of the
        positions shows the fracture.
    position : ndarray, shape (patients, 7, positions), float32
        Whether the slice shows the fracture, NaN where nobody said or no position is.
    """

    patient: NDArray[np.float32]
    patient_weight: NDArray[np.float32]
    vertebra: NDArray[np.float32]
    position: NDArray[np.float32]

    def __getitem__(self, rows: NDArray[np.int64] | slice) -> "PatientTargets":
        return PatientTargets(
            self.patient[rows], self.patient_weight[rows], self.vertebra[rows], self.position[rows]
        )

    def tensors(self) -> dict[str, Tensor]:
        """The same, by name, as a batch carries them."""
        return {
            "patient_target": torch.from_numpy(self.patient),
            "patient_weight": torch.from_numpy(self.patient_weight),
            "vertebra_target": torch.from_numpy(self.vertebra),
            "position_target": torch.from_numpy(self.position),
        }


def find_targets(
    buffer: CropBuffer, index: PatientIndex, studies: Sequence[Study] | None = None
) -> PatientTargets:
    """Look up what is known.

    Parameters
    ----------
    buffer : CropBuffer
    index : PatientIndex
    studies : sequence of Study, optional
        Of its rows, all labelled; without them (rows of single vertebrae) no patient is judged.
    """
    patient = np.full((len(index), 1 + len(CERVICAL)), np.nan, np.float32)
    weight = np.zeros_like(patient)
    if studies:
        labels = np.array([study.labels for study in studies])
        patient[:], weight[:] = labels, exam_weights(labels)
    vertebra = np.full(index.crop.shape, np.nan, np.float32)
    position = np.full(index.z.shape, np.nan, np.float32)
    for row, level in zip(*np.nonzero(index.crop >= 0), strict=True):
        crop = buffer.vertebrae[index.crop[row, level]]
        here = index.z[row, level]
        seen = crop.targets(np.nan)[here[here >= 0]]
        position[row, level, here >= 0] = seen
        if crop.fractured is not None and not (crop.fractured and (seen == 0).all()):
            vertebra[row, level] = crop.fractured
    return PatientTargets(patient, weight, vertebra, position)


@dataclass(frozen=True)
class LossWeights:
    """How much each part of the loss counts.

    Parameters
    ----------
    patient, vertebra, position : float
    """

    patient: float = 1.0
    vertebra: float = 1.0
    position: float = 1.0


def sequence_loss(
    output: SequenceOutput, targets: dict[str, Tensor], shares: LossWeights
) -> Tensor:
    """The loss of a batch: the weighted sum of its parts, each a mean over what is known.

    Parameters
    ----------
    output : SequenceOutput
    targets : dict of Tensor
        `PatientTargets.tensors`, on the model's device.
    shares : LossWeights
    """
    vertebra = targets["vertebra_target"]
    return (
        shares.patient
        * _mean_loss(output.logits, targets["patient_target"], targets["patient_weight"])
        + shares.vertebra * _mean_loss(output.vertebra_logits, vertebra, 1 + vertebra)
        + shares.position
        * (
            _mean_loss(output.position_logits, targets["position_target"], None)
            + _mean_loss(output.own_logits, targets["position_target"], None)
        )
        / 2
    )


def _mean_loss(logits: Tensor | None, target: Tensor, weight: Tensor | None) -> Tensor:
    """Weighted cross-entropy over the targets that are no NaN, by the sum of their weights."""
    assert logits is not None
    known = ~target.isnan()
    weights = known.to(logits.dtype) if weight is None else torch.where(known, weight, 0)
    losses = functional.binary_cross_entropy_with_logits(
        logits.float(), torch.where(known, target, 0), reduction="none"
    )
    return (losses * weights).sum() / weights.sum().clamp(min=1e-6)
