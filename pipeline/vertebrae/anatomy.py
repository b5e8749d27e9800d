"""Convert the output of a localizer network to vertebrae, and reject anatomically implausible ones.

A level is accepted if it is one component of plausible size with a high probability, and if its
distances from the other levels along the spine are plausible: C1 is above C2, which is above C3, at
plausible distances. A level that violates a rule is rejected with a reason, and the others are
accepted. Not here: the network (`pipeline.vertebrae.onnx_network`), and the test for bone
(`pipeline.vertebrae.locate`).

A cervical body and a disc together are about 15 to 20 mm high (Panjabi et al., Spine 16(8), 1991;
Gilad and Nissan, Spine 11(2), 1986). The volumes of cervical vertebrae are 13 to 19 cm3 in a mask
of VerSe, and 5 to 19 cm3 in phantoms. The limits below are wider, to allow for children, very tall
patients, flexion and coarse grids.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.vertebrae.maskparts import MaskPart
from storage_schemas.geometry import Box
from storage_schemas.localizer_card import CLASSES, LOCALIZED_LEVELS

MIN_SCORE = 0.5
"""Minimum mean probability inside a vertebra."""
BRIDGE_MM = 6.0
"""Maximum distance in mm between components of one vertebra: coarse grids do not resolve laminae,
which are a few mm thick (Xu et al., Spine 24(2), 1999)."""
SPECK_SHARE = 0.02
"""Minimum size of a component, as a fraction of the largest component of the level."""
SIZE_MM3 = (1_000.0, 60_000.0)
"""Range of the volume of a complete vertebra in mm3; on a coarse grid, the thin ring of C1 has half
of its true volume."""
TRUNCATED_MM3 = 200.0
"""Minimum volume in mm3 of a vertebra at an end of the scan, which is truncated."""
EXTENT_MM = (75.0, 120.0, 120.0)
"""Maximum size of a vertebra along z, y and x in mm, including spinous process and tilt."""
STEP_MM = (10.0, 32.0)
"""Minimum distance between the centres of adjacent vertebrae along the spine, and maximum distance,
in mm."""
TRUNCATED_SLACK_MM = 8.0
"""Tolerance of the minimum distance in mm for a truncated vertebra, whose centre is shifted."""
MIN_WEIGHT_RATIO = 2.0
"""Minimum ratio of the weights of two conflicting levels for the heavier one to be accepted."""
MAX_SLOPE = 2.0
"""Maximum slope of the spine against the z axis (63 degrees); steeper curves are from outliers."""
_CURVE_STEP_MM = 0.5
_NEIGHBOURS = np.ones((3, 3, 3))
_NOT_FOUND = "vertebra-not-found"
_OUT_OF_ORDER = "vertebra-out-of-order"

Missing = dict[str, tuple[str, str]]


@dataclass(frozen=True)
class FoundVertebra:
    """A vertebra in the cube of the network.

    Parameters
    ----------
    part : MaskPart
        Level and voxels of the vertebra.
    score : float
        Mean probability of the level over the voxels, rounded to four digits.
    weight : float
        Sum of the probability over the voxels, times the volume of a voxel, in mm3.
    centre : ndarray, shape (3,), float64
        Centroid of the voxels, LPS mm.
    truncated : bool
        Whether the vertebra reaches the first or the last slice of the scan.
    """

    part: MaskPart
    score: float
    weight: float
    centre: NDArray[np.float64]
    truncated: bool


def find_vertebrae(
    probabilities: NDArray[np.float32], affine: NDArray[np.float64]
) -> tuple[list[FoundVertebra], Missing]:
    """Find the vertebrae in the output of a network.

    Parameters
    ----------
    probabilities : ndarray, shape (classes, z, y, x), float32
        Probabilities in the order of `storage_schemas.localizer_card.CLASSES`.
    affine : ndarray, shape (4, 4), float64
        Matrix from homogeneous (z, y, x) indices of the cube to LPS mm.

    Returns
    -------
    list of FoundVertebra
        Accepted vertebrae, from head to feet.
    dict of str to (str, str)
        Kind, ``vertebra-not-found`` or ``vertebra-out-of-order``, and reason for each other level.
    """
    classes = _most_probable(probabilities)
    boxes = ndimage.find_objects(classes, len(CLASSES))
    found: list[FoundVertebra] = []
    missing: Missing = {}
    for level in LOCALIZED_LEVELS:
        number = CLASSES.index(level)
        box = boxes[number - 1]
        if box is None:
            missing[level] = (_NOT_FOUND, "the localizer sees nothing of it")
            continue
        vertebra = _measure(level, probabilities[number], classes == number, box, affine)
        if reason := _refusal(vertebra, affine):
            missing[level] = (_NOT_FOUND, reason)
        else:
            found.append(vertebra)
    accepted = {vertebra.part.level: vertebra for vertebra in found}
    while conflicts := _conflicts(list(accepted.values())):
        for level in _to_reject(conflicts, accepted):
            missing[level] = (_OUT_OF_ORDER, next(iter(conflicts[level].values())))
            del accepted[level]
    return list(accepted.values()), missing


def _most_probable(probabilities: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Argmax over the classes; a loop over the channels is many times faster than `np.argmax`."""
    classes = np.zeros(probabilities.shape[1:], np.uint8)
    best = probabilities[0].copy()
    for number in range(1, len(probabilities)):
        better = probabilities[number] > best
        classes[better] = number
        np.maximum(best, probabilities[number], out=best)
    return classes


def _measure(
    level: str,
    probability: NDArray[np.float32],
    inside: NDArray[np.bool_],
    box: Box,
    affine: NDArray[np.float64],
) -> FoundVertebra:
    """Measure the largest body of a level: its voxels, probability and position."""
    inside = _largest_body(inside[box], np.linalg.norm(affine[:3, :3], axis=0))
    voxels = np.argwhere(inside) + [side.start for side in box]
    low, high = voxels.min(0), voxels.max(0) + 1
    extent = (slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2]))
    within = tuple(slice(a - s.start, b - s.start) for a, b, s in zip(low, high, box, strict=True))
    probabilities = probability[tuple(voxels.T)].astype(np.float64)
    return FoundVertebra(
        MaskPart(level, extent, inside[within]),
        round(float(probabilities.mean()), 4),
        float(probabilities.sum()) * _voxel_mm3(affine),
        affine[:3, :3] @ voxels.mean(0) + affine[:3, 3],
        bool(low[0] == 0 or high[0] == len(probability)),
    )


def _largest_body(inside: NDArray[np.bool_], voxel_mm: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Largest body of a level; components closer than `BRIDGE_MM` belong to one body."""
    components, _ = ndimage.label(inside, _NEIGHBOURS)
    sizes = np.bincount(components.ravel())[1:]
    large = 1 + np.flatnonzero(sizes >= SPECK_SHARE * sizes.max())
    without_specks: NDArray[np.bool_] = np.isin(components, large)
    if len(large) == 1:
        return without_specks
    # Pad by half of the distance that is bridged.
    padding = [(int(np.ceil(BRIDGE_MM / 2 / mm)),) * 2 for mm in voxel_mm]
    unpadded = tuple(slice(a, a + n) for (a, _), n in zip(padding, inside.shape, strict=True))
    distance = ndimage.distance_transform_edt(~np.pad(without_specks, padding), sampling=voxel_mm)
    bodies = ndimage.label(distance <= BRIDGE_MM / 2, _NEIGHBOURS)[0][unpadded] * without_specks
    largest: NDArray[np.bool_] = bodies == 1 + np.bincount(bodies.ravel())[1:].argmax()
    return largest


def _refusal(vertebra: FoundVertebra, affine: NDArray[np.float64]) -> str:
    """Reason to reject a body by its own size and probability; empty if there is none."""
    if vertebra.score < MIN_SCORE:
        return (
            f"the localizer is {vertebra.score:.0%} sure of it, at least {MIN_SCORE:.0%} is asked"
        )
    cm3 = int(vertebra.part.inside.sum()) * _voxel_mm3(affine) / 1000
    minimum = (TRUNCATED_MM3 if vertebra.truncated else SIZE_MM3[0]) / 1000
    if not minimum <= cm3 <= SIZE_MM3[1] / 1000:
        return f"it has {cm3:.2f} cm3, a vertebra has {minimum:g} to {SIZE_MM3[1] / 1000:g}"
    sides = np.array(vertebra.part.inside.shape) * np.linalg.norm(affine[:3, :3], axis=0)
    if (sides > EXTENT_MM).any():
        measured = " x ".join(f"{side:.0f}" for side in sides)
        limit = " x ".join(f"{side:.0f}" for side in EXTENT_MM)
        return f"it measures {measured} mm (z, y, x), a vertebra at most {limit}"
    return ""


def _conflicts(vertebrae: list[FoundVertebra]) -> dict[str, dict[str, str]]:
    """For each level, the levels at implausible distances with reasons, adjacent levels first."""
    heights = along_spine(np.reshape([vertebra.centre for vertebra in vertebrae], (-1, 3)))
    conflicts: dict[str, dict[str, str]] = {}
    pairs = [(i, j) for j in range(len(vertebrae)) for i in range(j)]
    for i, j in sorted(pairs, key=lambda pair: pair[1] - pair[0]):
        upper, lower = vertebrae[i], vertebrae[j]
        names = upper.part.level, lower.part.level
        steps = LOCALIZED_LEVELS.index(names[1]) - LOCALIZED_LEVELS.index(names[0])
        slack = TRUNCATED_SLACK_MM * (upper.truncated or lower.truncated)
        minimum, maximum = STEP_MM[0] * steps - slack, STEP_MM[1] * steps
        along = float(heights[i] - heights[j])
        apart = float(np.linalg.norm(upper.centre - lower.centre))
        if along >= minimum and apart <= maximum:
            continue
        for level, other, sign in (*names, 1), (*names[::-1], -1):
            found = f"{abs(along):.0f} mm {'above' if sign * along > 0 else 'below'}"
            wanted = f"{minimum:.0f} to {maximum:.0f} mm {'above' if sign > 0 else 'below'}"
            conflicts.setdefault(level, {})[other] = (
                f"{found} {other} and {apart:.0f} mm from it, its place is {wanted}"
            )
    return conflicts


def _to_reject(
    conflicts: dict[str, dict[str, str]], accepted: dict[str, FoundVertebra]
) -> list[str]:
    """The levels with the most conflicts; of two that conflict with each other, the lighter one.

    If their weights are similar, both are rejected.
    """
    most = max(len(others) for others in conflicts.values())
    suspects = [level for level, others in conflicts.items() if len(others) == most]
    lighter = [
        level
        for level in suspects
        if any(
            accepted[level].weight < MIN_WEIGHT_RATIO * accepted[other].weight
            for other in conflicts[level]
            if other in suspects
        )
    ]
    return lighter or suspects


def along_spine(centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """Arc length of each point on the curve through all points, in mm from the feet; shape (n,).

    The curve is a polynomial of x and y over z, so it does not depend on the levels.
    """
    heights: NDArray[np.float64] = centres[:, 2]
    distinct = len(np.unique(heights.round()))
    if distinct < 3:
        return heights
    mean = heights.mean()
    degree = 1 if distinct < 5 else 2
    coefficients = np.polynomial.polynomial.polyfit(heights - mean, centres[:, :2], degree)
    z = np.arange(np.ptp(heights) + 40.0, step=_CURVE_STEP_MM) + heights.min() - 20.0 - mean
    curve = np.column_stack([*np.polynomial.polynomial.polyval(z, coefficients), z + mean])
    steps = np.diff(curve, axis=0)
    if (np.linalg.norm(steps[:, :2], axis=1) > MAX_SLOPE * _CURVE_STEP_MM).any():
        return heights
    lengths = np.concatenate([[0.0], np.linalg.norm(steps, axis=1).cumsum()])
    nearest = np.linalg.norm(curve[None] - centres[:, None], axis=2).argmin(1)
    along: NDArray[np.float64] = lengths[nearest]
    return along


def _voxel_mm3(affine: NDArray[np.float64]) -> float:
    return abs(float(np.linalg.det(affine[:3, :3])))
