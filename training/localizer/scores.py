"""Scores of a localizer on overviews: Dice, box coverage, and wrongly named vertebrae.

The scores use plain rules: each voxel has its most probable class, and a vertebra is the largest
connected component of its level. The pipeline applies further rules of anatomy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from scipy import ndimage

from storage_schemas.localizer_card import (
    CLASSES,
    LOCALIZED_LEVELS,
    LevelScore,
    LocalizerCard,
)

COVERED = 0.95
"""Fraction of a vertebra's voxels that its box must contain."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Finding:
    """Comparison of prediction and truth for one level of one study.

    Parameters
    ----------
    level : str
        Name of the vertebra.
    dice : float or None
        Dice score; None if the vertebra is not in the study.
    covered : float or None
        Fraction of the vertebra's voxels inside the box; None if the vertebra is not in the study.
    misnamed : bool
        Whether the prediction overlaps another vertebra more than this one, or none at all.
    """

    level: str
    dice: float | None
    covered: float | None
    misnamed: bool


@dataclass(frozen=True)
class ConstantBaseline:
    """Image-independent prediction: the same boxes and voxels for every study.

    Parameters
    ----------
    boxes : ndarray, shape (levels, 3, 2), float64
        Mean first and last index of each level along each axis; NaN for levels without examples.
    voxels : ndarray, shape (levels, S, S, S), bool
        Most frequent voxels of each level, as many as its mean volume.
    """

    boxes: NDArray[np.float64]
    voxels: Mask


def score_classes(
    found: NDArray[np.uint8],
    truth: NDArray[np.uint8],
    spacing_mm: Sequence[float],
    margin_mm: float,
) -> list[Finding]:
    """Compare two cubes of classes.

    Parameters
    ----------
    found : ndarray, shape (S, S, S), uint8
        Predicted class of each voxel, an index of `storage_schemas.localizer_card.CLASSES`.
    truth : ndarray, shape (S, S, S), uint8
        True class of each voxel.
    spacing_mm : sequence of float
        Voxel spacing (z, y, x) in mm.
    margin_mm : float
        Margin around the predicted extent in mm.

    Returns
    -------
    list of Finding
        One entry for each level.
    """
    findings = []
    for number, level in enumerate(LOCALIZED_LEVELS, start=1):
        piece = largest_piece(found == number)
        box = _extent(piece)
        findings.append(_score_level(level, piece, box, truth, spacing_mm, margin_mm))
    return findings


def score_baseline(
    guess: ConstantBaseline,
    truth: NDArray[np.uint8],
    spacing_mm: Sequence[float],
    margin_mm: float,
) -> list[Finding]:
    """Compare the constant baseline with a cube of classes; see `score_classes`."""
    return [
        _score_level(
            level, voxels, None if np.isnan(box).any() else box, truth, spacing_mm, margin_mm
        )
        for level, box, voxels in zip(LOCALIZED_LEVELS, guess.boxes, guess.voxels, strict=True)
    ]


def fit_baseline(classes: Sequence[NDArray[np.uint8]]) -> ConstantBaseline:
    """Fit the constant baseline to the training studies' cubes, each of shape (S, S, S)."""
    boxes = np.full((len(LOCALIZED_LEVELS), 3, 2), np.nan)
    voxels = np.zeros((len(LOCALIZED_LEVELS), *classes[0].shape), bool)
    for index in range(len(LOCALIZED_LEVELS)):
        extents = []
        frequency = np.zeros(classes[0].shape, np.uint32)
        for cube in classes:
            mask = cube == index + 1
            frequency += mask
            if (box := _extent(mask)) is not None:
                extents.append(box)
        if extents:
            boxes[index] = np.mean(extents, axis=0)
            mean = round(frequency.sum() / len(extents))
            voxels[index].ravel()[np.argpartition(frequency.ravel(), -mean)[-mean:]] = True
    return ConstantBaseline(boxes, voxels)


def largest_piece(mask: Mask) -> Mask:
    """Return the largest connected component of a mask, with 26-connectivity."""
    pieces, count = ndimage.label(mask, np.ones((3, 3, 3)))
    if count < 2:
        return mask
    largest = np.bincount(pieces.ravel())[1:].argmax() + 1
    return np.asarray(pieces == largest)


def score_levels(findings: Sequence[Finding]) -> Mapping[str, LevelScore]:
    """Summarise the findings of many studies by level."""
    scores = {}
    for level in LOCALIZED_LEVELS:
        there = [entry for entry in findings if entry.level == level and entry.dice is not None]
        dice = [entry.dice for entry in there if entry.dice is not None]
        covered = [entry.covered for entry in there if entry.covered is not None]
        scores[level] = LevelScore(
            vertebrae=len(there),
            dice=float(np.mean(dice)) if dice else None,
            covered=float(np.mean([share >= COVERED for share in covered])) if covered else None,
        )
    return scores


def show_scores(card: LocalizerCard) -> Table:
    """Make a table of the scores of each level, beside the constant baseline."""
    held_out = len(card.folds[card.held_out])
    table = Table(
        "level", "vertebrae", "Dice", "constant", "boxes covering 95 %", "constant",
        title=f"{len(card.training_studies)} training, {held_out} held-out studies", box=None,
    )  # fmt: skip
    for level in LOCALIZED_LEVELS:
        ours, guess = card.scores[level], card.baseline[level]
        table.add_row(
            level,
            str(ours.vertebrae),
            *("-" if value is None else f"{value:.3f}"
              for value in (ours.dice, guess.dice, ours.covered, guess.covered)),
        )  # fmt: skip
    return table


def _score_level(
    level: str,
    voxels: Mask,
    box: NDArray[np.float64] | None,
    truth: NDArray[np.uint8],
    spacing_mm: Sequence[float],
    margin_mm: float,
) -> Finding:
    number = LOCALIZED_LEVELS.index(level) + 1
    below = np.bincount(truth[voxels], minlength=len(CLASSES))
    # Without any overlap, argmax returns the background.
    likeliest = int(np.append(0, below[1:]).argmax())
    misnamed = bool(voxels.any()) and likeliest != number
    there = truth == number
    if not there.any():
        return Finding(level, None, None, misnamed)
    dice = 2 * int(below[number]) / (int(voxels.sum()) + int(there.sum()))
    covered = 0.0
    if box is not None:
        margin = margin_mm / np.asarray(spacing_mm)
        places = np.argwhere(there)
        low, high = box[:, 0] - margin, box[:, 1] + margin
        covered = float(((places >= low) & (places <= high)).all(axis=1).mean())
    return Finding(level, dice, covered, misnamed)


def _extent(mask: Mask) -> NDArray[np.float64] | None:
    """Return first and last index along each axis, shape (3, 2); None for an empty mask."""
    if not mask.any():
        return None
    return np.array(
        [np.flatnonzero(mask.any(axis=others))[[0, -1]] for others in ((1, 2), (0, 2), (0, 1))],
        np.float64,
    )
