"""Split frames into passes over the same positions, by time or by InstanceNumber.

Used if no other field distinguishes the frames of a series. AcquisitionTime, ContentTime and
InstanceNumber give an order of events, not of slices: if the positions traverse the stack twice in
this order, there are two passes.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.dicom.selection import Candidate
from pipeline.dicom.series.facts import same_object, times_of

SAME_POSITION_MM = 0.01
"""Distance along the normal below which slices are at the same position."""
EVEN_SHARE = 0.75
"""Minimum fraction of gaps near the median gap in an evenly spaced set."""
EVEN_TOLERANCE = 0.1
JUMP = 4.5
"""Distance of consecutive frames, in units of the median gap, above which a new pass starts."""
LONG_PASS = 8
"""Minimum number of positions of a pass that is found without repeated positions."""
MOST_PASSES = 4

Offsets = NDArray[np.float64]


def median_step(planes: Offsets) -> float:
    """Return the median distance of neighbours, mm; 0 for fewer than two planes."""
    return float(np.median(np.diff(planes))) if len(planes) > 1 else 0.0


def is_even(planes: Offsets) -> bool:
    """Whether most gaps are near the median gap."""
    if len(planes) < 3:
        return True
    gaps = np.diff(planes)
    near = np.abs(gaps / np.median(gaps) - 1) <= EVEN_TOLERANCE
    return float(near.mean()) >= EVEN_SHARE


def find_planes(offsets: Offsets) -> NDArray[np.int64]:
    """Return the index of each frame's position, 0 for the lowest."""
    order = np.argsort(offsets, kind="stable")
    planes = np.empty(len(offsets), np.int64)
    number, begin = -1, -np.inf
    for index in order.tolist():
        if offsets[index] - begin >= SAME_POSITION_MM:
            number, begin = number + 1, float(offsets[index])
        planes[index] = number
    return planes


def split_passes(frames: Sequence[Candidate], offsets: Offsets) -> list[list[int]]:
    """Split the frames of one acquisition into passes.

    Parameters
    ----------
    frames : sequence of Candidate
    offsets : ndarray, shape (frames,)
        Position of each frame along the normal, mm.

    Returns
    -------
    list of list of int
        Indices of the frames of each pass, in temporal order. One pass if no position is repeated;
        none if positions are repeated and no field distinguishes the frames.
    """
    planes = find_planes(offsets)
    names: dict[int, dict[object, list[int]]] = {}
    for index, (frame, plane) in enumerate(zip(frames, planes.tolist(), strict=True)):
        names.setdefault(plane, {}).setdefault(same_object(frame), []).append(index)
    # Several encodings of one image count as one frame.
    objects = [indices for group in names.values() for indices in group.values()]
    times = [times_of(frames[indices[0]]) for indices in objects]
    where = np.asarray([float(offsets[indices[0]]) for indices in objects])
    plane_of = [int(planes[indices[0]]) for indices in objects]
    repeated = {plane for plane, group in names.items() if len(group) > 1}
    for values in zip(*times, strict=True):
        passes = _order_into_passes(values, where, plane_of)
        if passes is None:
            continue
        if repeated and _explains(passes, plane_of, repeated):
            return [[i for number in one for i in objects[number]] for one in passes]
        if not repeated and _are_rival(passes, where):
            return [[i for number in one for i in objects[number]] for one in passes]
    return [] if repeated else [list(range(len(frames)))]


def _order_into_passes(
    values: Sequence[float | None], where: Offsets, planes: Sequence[int]
) -> list[list[int]] | None:
    """Split the order of events where positions reverse direction, jump or repeat."""
    if any(value is None for value in values) or len(set(values)) < 2:
        return None
    order = sorted(range(len(values)), key=lambda i: (values[i], where[i]))
    step = median_step(np.unique(where)) or 1.0
    passes: list[list[int]] = [[order[0]]]
    for index in order[1:]:
        one = passes[-1]
        move = where[index] - where[one[-1]]
        turned = len(one) > 1 and (move > 0) != (where[one[-1]] > where[one[-2]])
        if planes[index] == planes[one[-1]] or abs(move) > JUMP * step or turned:
            if values[index] == values[one[-1]]:
                return None  # the order of the two is undefined
            passes.append([index])
        else:
            one.append(index)
    _give_back(passes, where, step)
    return passes


def _give_back(passes: list[list[int]], where: Offsets, step: float) -> None:
    """Move the last frame of a pass to the longer pass after it if it continues that one."""
    for one, following in itertools.pairwise(passes):
        if not 2 <= len(one) < len(following):
            continue
        move, then = where[following[0]] - where[one[-1]], where[following[1]] - where[following[0]]
        if 0 < abs(move) <= 1.5 * step and (move > 0) == (then > 0):
            following.insert(0, one.pop())


def _explains(passes: Sequence[Sequence[int]], planes: Sequence[int], repeated: set[int]) -> bool:
    """Whether short passes are only repeats; a noisy order gives many short passes."""
    short = [one for one in passes if len(one) < 3]
    if len(short) == len(passes) and len(set(planes)) > 2:
        return False
    if any(planes[i] not in repeated for one in short for i in one):
        return False
    return sum(len(one) == 2 for one in short) <= 1


def _are_rival(passes: Sequence[Sequence[int]], where: Offsets) -> bool:
    """Whether long, evenly spaced passes cover the same range at interleaved positions."""
    if not 2 <= len(passes) <= MOST_PASSES or min(map(len, passes)) < LONG_PASS:
        return False
    sorted_passes = [np.sort(where[list(one)]) for one in passes]
    if not all(is_even(one) for one in sorted_passes):
        return False
    inside = [
        float(((b > a[0]) & (b < a[-1])).mean()) for a, b in itertools.pairwise(sorted_passes)
    ]
    return min(inside) > 0.5
