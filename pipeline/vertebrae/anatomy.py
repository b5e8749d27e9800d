"""From what a network sees to vertebrae: the rules that any neck keeps, and no network must.

A level is believed where it is one body of plausible size that the network is sure of, and where
its distances from the other levels along the spine are those of a neck: C1 above C2 above C3, a
step apart, nothing in one place. A level that breaks a rule is left out with its reason, and the
others are kept. Not here: the network (`pipeline.vertebrae.onnx_network`), bone
(`pipeline.vertebrae.locate`).

In the neck a body and a disc are some 15 to 20 mm high (Panjabi et al., Spine 16(8), 1991; Gilad
and Nissan, Spine 11(2), 1986). The cervical vertebrae of a VerSe mask have 13 to 19 cm3, those of
the phantoms 5 to 19. The bounds below are wider, for children, giants, bends and coarse grids.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.vertebrae.maskparts import MaskPart
from storage_schemas.geometry import Box
from storage_schemas.localizer_card import CLASSES, LOCALIZED_LEVELS

MIN_SCORE = 0.5
"""Mean probability inside a vertebra."""
BRIDGE_MM = 6.0
"""Pieces nearer than this are one vertebra: a coarse grid loses laminae, which are a few mm thin
(Xu et al., Spine 24(2), 1999)."""
SPECK_SHARE = 0.02
"""Of a level's largest piece; smaller ones are no part of a vertebra."""
SIZE_MM3 = (1_000.0, 60_000.0)
"""A whole vertebra's volume; on a coarse grid the thin ring of C1 keeps half of its own."""
CUT_MM3 = 200.0
"""The least volume where the scan ends in the vertebra; less is a speck."""
EXTENT_MM = (75.0, 120.0, 120.0)
"""The most that a vertebra measures along z, y and x, spinous process and tilt included."""
STEP_MM = (10.0, 32.0)
"""From the middle of a vertebra to that of the next: the least along the spine, and the most."""
CUT_SLACK_MM = 8.0
"""By how much the middle of a vertebra moves where the scan shows a part of it."""
CLEARLY = 2.0
"""How many times more of a vertebra a level must show to be believed against another one."""
MAX_SLOPE = 2.0
"""Of the spine against the scanner's axis, 63 degrees; more comes of a level that strays."""
_CURVE_STEP_MM = 0.5
_NEIGHBOURS = np.ones((3, 3, 3))
_NOT_FOUND = "vertebra-not-found"
_OUT_OF_ORDER = "vertebra-out-of-order"

Missing = dict[str, tuple[str, str]]


@dataclass(frozen=True)
class NamedVertebra:
    """A vertebra in the network's cube.

    Parameters
    ----------
    part : MaskPart
        Its level and voxels.
    score : float
        Mean probability of the level over its voxels, to four digits.
    weight : float
        Sum of the same, in mm3: how much of a vertebra it is.
    middle : ndarray, shape (3,)
        Of its voxels, LPS mm.
    cut : bool
        Whether it reaches the first or the last slice of the scan.
    """

    part: MaskPart
    score: float
    weight: float
    middle: NDArray[np.float64]
    cut: bool


def name_vertebrae(
    probabilities: NDArray[np.float32], affine: NDArray[np.float64]
) -> tuple[list[NamedVertebra], Missing]:
    """Find C1 to C7 in a network's output.

    Parameters
    ----------
    probabilities : ndarray, shape (classes, z, y, x), float32
        In the order of `storage_schemas.localizer_card.CLASSES`.
    affine : ndarray, shape (4, 4)
        From homogeneous (z, y, x) indices of the cube to LPS mm.

    Returns
    -------
    list of NamedVertebra
        Those that keep every rule, from head to feet.
    dict of str to (str, str)
        For each other level its kind, ``vertebra-not-found`` or ``vertebra-out-of-order``, and why.
    """
    classes = _likeliest(probabilities)
    boxes = ndimage.find_objects(classes, len(CLASSES))
    found: list[NamedVertebra] = []
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
    kept = {vertebra.part.level: vertebra for vertebra in found}
    while conflicts := _conflicts(list(kept.values())):
        for level in _to_leave_out(conflicts, kept):
            missing[level] = (_OUT_OF_ORDER, next(iter(conflicts[level].values())))
            del kept[level]
    return list(kept.values()), missing


def _likeliest(probabilities: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The likeliest class of each voxel; channel by channel, which is many times faster."""
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
) -> NamedVertebra:
    """The largest body of a level, where it is, and how sure the network is of it."""
    inside = _largest_body(inside[box], np.linalg.norm(affine[:3, :3], axis=0))
    voxels = np.argwhere(inside) + [side.start for side in box]
    low, high = voxels.min(0), voxels.max(0) + 1
    extent = (slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2]))
    within = tuple(slice(a - s.start, b - s.start) for a, b, s in zip(low, high, box, strict=True))
    sure = probability[tuple(voxels.T)].astype(np.float64)
    return NamedVertebra(
        MaskPart(level, extent, inside[within]),
        round(float(sure.mean()), 4),
        float(sure.sum()) * _voxel_mm3(affine),
        affine[:3, :3] @ voxels.mean(0) + affine[:3, 3],
        bool(low[0] == 0 or high[0] == len(probability)),
    )


def _largest_body(inside: NDArray[np.bool_], voxel_mm: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Of all that is named alike the largest body; pieces that nearly touch are one."""
    pieces, _ = ndimage.label(inside, _NEIGHBOURS)
    sizes = np.bincount(pieces.ravel())[1:]
    large = 1 + np.flatnonzero(sizes >= SPECK_SHARE * sizes.max())
    kept: NDArray[np.bool_] = np.isin(pieces, large)
    if len(large) == 1:
        return kept
    # Around the box as much as two pieces may grow towards each other.
    around = [(int(np.ceil(BRIDGE_MM / 2 / mm)),) * 2 for mm in voxel_mm]
    back = tuple(slice(a, a + n) for (a, _), n in zip(around, inside.shape, strict=True))
    far = ndimage.distance_transform_edt(~np.pad(kept, around), sampling=voxel_mm)
    bodies = ndimage.label(far <= BRIDGE_MM / 2, _NEIGHBOURS)[0][back] * kept
    largest: NDArray[np.bool_] = bodies == 1 + np.bincount(bodies.ravel())[1:].argmax()
    return largest


def _refusal(vertebra: NamedVertebra, affine: NDArray[np.float64]) -> str:
    """Why a body is no vertebra, whatever stands around it; empty where it may be one."""
    if vertebra.score < MIN_SCORE:
        return (
            f"the localizer is {vertebra.score:.0%} sure of it, at least {MIN_SCORE:.0%} is asked"
        )
    cm3 = int(vertebra.part.inside.sum()) * _voxel_mm3(affine) / 1000
    least = (CUT_MM3 if vertebra.cut else SIZE_MM3[0]) / 1000
    if not least <= cm3 <= SIZE_MM3[1] / 1000:
        return f"it has {cm3:.2f} cm3, a vertebra has {least:g} to {SIZE_MM3[1] / 1000:g}"
    sides = np.array(vertebra.part.inside.shape) * np.linalg.norm(affine[:3, :3], axis=0)
    if (sides > EXTENT_MM).any():
        shown = " x ".join(f"{side:.0f}" for side in sides)
        most = " x ".join(f"{side:.0f}" for side in EXTENT_MM)
        return f"it measures {shown} mm (z, y, x), a vertebra at most {most}"
    return ""


def _conflicts(vertebrae: list[NamedVertebra]) -> dict[str, dict[str, str]]:
    """For each level the others that it cannot stand beside, nearest names first, and why."""
    heights = _along_spine(np.reshape([vertebra.middle for vertebra in vertebrae], (-1, 3)))
    conflicts: dict[str, dict[str, str]] = {}
    pairs = [(i, j) for j in range(len(vertebrae)) for i in range(j)]
    for i, j in sorted(pairs, key=lambda pair: pair[1] - pair[0]):
        upper, lower = vertebrae[i], vertebrae[j]
        names = upper.part.level, lower.part.level
        steps = LOCALIZED_LEVELS.index(names[1]) - LOCALIZED_LEVELS.index(names[0])
        least = STEP_MM[0] * steps - CUT_SLACK_MM * (upper.cut or lower.cut)
        most = STEP_MM[1] * steps
        along = float(heights[i] - heights[j])
        apart = float(np.linalg.norm(upper.middle - lower.middle))
        if along >= least and apart <= most:
            continue
        for level, other, sign in (*names, 1), (*names[::-1], -1):
            found = f"{abs(along):.0f} mm {'above' if sign * along > 0 else 'below'}"
            wanted = f"{least:.0f} to {most:.0f} mm {'above' if sign > 0 else 'below'}"
            conflicts.setdefault(level, {})[other] = (
                f"{found} {other} and {apart:.0f} mm from it, its place is {wanted}"
            )
    return conflicts


def _to_leave_out(
    conflicts: dict[str, dict[str, str]], kept: dict[str, NamedVertebra]
) -> list[str]:
    """The levels with most conflicts; of two that accuse each other the one that shows less.

    Where nothing tells them apart none of them is believed.
    """
    most = max(len(others) for others in conflicts.values())
    accused = [level for level, others in conflicts.items() if len(others) == most]
    weaker = [
        level
        for level in accused
        if any(
            kept[level].weight < CLEARLY * kept[other].weight
            for other in conflicts[level]
            if other in accused
        )
    ]
    return weaker or accused


def _along_spine(middles: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far up each point lies along the curve through all of them, mm; shape (n,).

    The curve is of x and y over z, so it knows nothing of the levels' names.
    """
    heights: NDArray[np.float64] = middles[:, 2]
    places = len(np.unique(heights.round()))
    if places < 3:
        return heights
    centre = heights.mean()
    degree = 1 if places < 5 else 2
    bends = np.polynomial.polynomial.polyfit(heights - centre, middles[:, :2], degree)
    z = np.arange(np.ptp(heights) + 40.0, step=_CURVE_STEP_MM) + heights.min() - 20.0 - centre
    curve = np.column_stack([*np.polynomial.polynomial.polyval(z, bends), z + centre])
    steps = np.diff(curve, axis=0)
    if (np.linalg.norm(steps[:, :2], axis=1) > MAX_SLOPE * _CURVE_STEP_MM).any():
        return heights
    lengths = np.concatenate([[0.0], np.linalg.norm(steps, axis=1).cumsum()])
    nearest = np.linalg.norm(curve[None] - middles[:, None], axis=2).argmin(1)
    along: NDArray[np.float64] = lengths[nearest]
    return along


def _voxel_mm3(affine: NDArray[np.float64]) -> float:
    return abs(float(np.linalg.det(affine[:3, :3])))
