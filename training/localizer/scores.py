"""How well vertebrae were found in overviews: Dice, boxes that hold them, and wrong names.

The rules here are the plainest: a voxel is what is most probable there, and a vertebra is the
largest piece of its level. What a user gets is made by the pipeline, whose rules know more.
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
"""Of a vertebra's voxels, the share that its box must hold."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Finding:
    """One level in one study: what was found against what is there.

    Parameters
    ----------
    level : str
    dice : float or None
        None where the vertebra is not there.
    covered : float or None
        Share of the vertebra's voxels that the box holds; None likewise.
    misnamed : bool
        Whether something was found that lies on another vertebra more than on this one, or on
        none at all.
    """

    level: str
    dice: float | None
    covered: float | None
    misnamed: bool


@dataclass(frozen=True)
class ConstantBaseline:
    """What can be said of a study without a look at it.

    Parameters
    ----------
    boxes : ndarray, shape (levels, 3, 2), float64
        Mean first and last index of each of C1 to C7 along each axis; NaN where never seen.
    voxels : ndarray, shape (levels, S, S, S), bool
        As many of the most frequent voxels as the level has on average.
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
    found, truth : ndarray, shape (S, S, S), uint8
        Indices of `storage_schemas.localizer_card.CLASSES`.
    spacing_mm : sequence of float
        (z, y, x).
    margin_mm : float
        Around the extent of what was found.

    Returns
    -------
    list of Finding
        One for each of C1 to C7.
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
    """Compare the guess with a cube of classes; as `score_classes`."""
    return [
        _score_level(
            level, voxels, None if np.isnan(box).any() else box, truth, spacing_mm, margin_mm
        )
        for level, box, voxels in zip(LOCALIZED_LEVELS, guess.boxes, guess.voxels, strict=True)
    ]


def fit_baseline(classes: Sequence[NDArray[np.uint8]]) -> ConstantBaseline:
    """Make the guess of the training studies' cubes, each (S, S, S)."""
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
    """The largest piece of a mask, corners joined."""
    pieces, count = ndimage.label(mask, np.ones((3, 3, 3)))
    if count < 2:
        return mask
    largest = np.bincount(pieces.ravel())[1:].argmax() + 1
    return np.asarray(pieces == largest)


def score_levels(findings: Sequence[Finding]) -> Mapping[str, LevelScore]:
    """Sum up the findings of many studies, by level."""
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
    """A table of how well each level was found, beside the constant guess."""
    held_out = len(card.folds[card.held_out])
    table = Table(
        "level", "vertebrae", "Dice", "constant", "boxes covering 95 %", "constant",
        title=f"{held_out} held-out studies, {len(card.training_studies)} learnt from", box=None,
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
    # Where it lies on no vertebra at all, the first of equals is the background.
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
    """First and last index along each axis, shape (3, 2); None of an empty mask."""
    if not mask.any():
        return None
    return np.array(
        [np.flatnonzero(mask.any(axis=others))[[0, -1]] for others in ((1, 2), (0, 2), (0, 1))],
        np.float64,
    )
