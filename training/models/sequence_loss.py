"""The loss of sequence models on patients, vertebrae and positions.

Patients have the competition's loss over all targets. Vertebrae have the cross-entropy of their own
logits with the weights of their level. Positions are trained only where the slice
label is known, not with the label of the vertebra; both the encoder's own logit and the sequence's
logit of a position are trained, so that the encoder has to detect the fracture itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from training.data.cohort import Study, label_table
from training.data.crop_buffer import CropBuffer
from training.metrics.competition import exam_weights
from training.models.sequence_inputs import PatientIndex
from training.models.sequence_model import SequenceOutput


@dataclass(frozen=True)
class PatientTargets:
    """Targets of some patients.

    Parameters
    ----------
    patient : ndarray, shape (patients, targets), float32
        Labels of the patient and the levels, 0 or 1; NaN where unknown.
    patient_weight : ndarray, shape (patients, targets), float32
        Weight of each target in its exam, see `exam_weights`; 0 where the target is unknown.
    vertebra : ndarray, shape (patients, levels), float32
        Label of each vertebra, 0 or 1; NaN without a crop or label, or if all positions are known
        to show no fracture of a fractured vertebra.
    vertebra_weight : ndarray, shape (patients, levels), float32
        Weight of each vertebra by its label, from `Targets.weights`.
    position : ndarray, shape (patients, levels, positions), float32
        Label of each slice, 0 or 1; NaN where unknown or masked.
    """

    patient: NDArray[np.float32]
    patient_weight: NDArray[np.float32]
    vertebra: NDArray[np.float32]
    vertebra_weight: NDArray[np.float32]
    position: NDArray[np.float32]

    def __getitem__(self, rows: NDArray[np.int64] | slice) -> "PatientTargets":
        return PatientTargets(
            self.patient[rows],
            self.patient_weight[rows],
            self.vertebra[rows],
            self.vertebra_weight[rows],
            self.position[rows],
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return the targets as tensors, under the names that a batch uses."""
        return {
            "patient_target": torch.from_numpy(self.patient),
            "patient_weight": torch.from_numpy(self.patient_weight),
            "vertebra_target": torch.from_numpy(self.vertebra),
            "vertebra_weight": torch.from_numpy(self.vertebra_weight),
            "position_target": torch.from_numpy(self.position),
        }


def find_targets(
    buffer: CropBuffer, index: PatientIndex, studies: Sequence[Study] | None = None
) -> PatientTargets:
    """Look up the labels of patients, vertebrae and positions.

    Parameters
    ----------
    buffer : CropBuffer
        Buffer that holds the crops and their labels.
    index : PatientIndex
        Crops and positions of the patients.
    studies : sequence of Study, optional
        Studies of the rows, with their labels; without them the patient targets are NaN.
    """
    targets = buffer.targets
    patient = np.full((len(index), len(targets)), np.nan, np.float32)
    weight = np.zeros_like(patient)
    if studies:
        labels = label_table(studies)
        patient[:], weight[:] = labels, exam_weights(labels, targets)
    vertebra = np.full(index.crop.shape, np.nan, np.float32)
    position = np.full(index.z.shape, np.nan, np.float32)
    for row, level in zip(*np.nonzero(index.crop >= 0), strict=True):
        crop = buffer.vertebrae[index.crop[row, level]]
        here = index.z[row, level]
        seen = crop.targets(np.nan)[here[here >= 0]]
        position[row, level, here >= 0] = seen
        if crop.fractured is not None and not (crop.fractured and (seen == 0).all()):
            vertebra[row, level] = crop.fractured
    vertebra_weight = np.where(
        vertebra == 1, targets.positive_weights[1:], targets.negative_weights[1:]
    ).astype(np.float32)
    return PatientTargets(patient, weight, vertebra, vertebra_weight, position)


@dataclass(frozen=True)
class LossWeights:
    """Weights of the parts of the loss.

    Parameters
    ----------
    patient : float
        Weight of the patient loss.
    vertebra : float
        Weight of the vertebra loss.
    position : float
        Weight of the position loss.
    """

    patient: float = 1.0
    vertebra: float = 1.0
    position: float = 1.0


def sequence_loss(
    output: SequenceOutput, targets: dict[str, Tensor], shares: LossWeights
) -> Tensor:
    """Compute the weighted sum of the patient, vertebra and position losses of a batch.

    Parameters
    ----------
    output : SequenceOutput
        Output of the model.
    targets : dict of Tensor
        Tensors of `PatientTargets.tensors`, on the model's device.
    shares : LossWeights
        Weight of each part.
    """
    return (
        shares.patient
        * _mean_loss(output.logits, targets["patient_target"], targets["patient_weight"])
        + shares.vertebra
        * _mean_loss(output.vertebra_logits, targets["vertebra_target"], targets["vertebra_weight"])
        + shares.position
        * (
            _mean_loss(output.position_logits, targets["position_target"], None)
            + _mean_loss(output.own_logits, targets["position_target"], None)
        )
        / 2
    )


def _mean_loss(logits: Tensor | None, target: Tensor, weight: Tensor | None) -> Tensor:
    """Weighted mean of the cross-entropy over targets that are not NaN."""
    assert logits is not None
    known = ~target.isnan()
    weights = known.to(logits.dtype) if weight is None else torch.where(known, weight, 0)
    losses = functional.binary_cross_entropy_with_logits(
        logits.float(), torch.where(known, target, 0), reduction="none"
    )
    return (losses * weights).sum() / weights.sum().clamp(min=1e-6)
