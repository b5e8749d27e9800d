"""Divide the frames of one grid into acquisitions.

A series may hold several passes over the same range: contrast phases, kernels, repeated scans,
bolus tracking. Sets of frames that overlap along the normal are never joined, whether or not their
positions coincide. Consecutive sets (two stations, one acquisition per rotation) form one stack.
The rules and their sources are in decision 0005.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.dicom.selection import Candidate
from pipeline.dicom.series.facts import acquisition_of, phase_of, read_origin, same_object
from pipeline.dicom.series.passes import (
    SAME_POSITION_MM,
    find_planes,
    is_even,
    median_step,
    split_passes,
)

NEAR = 0.5
"""Distance, in units of the smaller step, below which planes of two sets share a position."""
AT_THE_END = 0.05
"""Same distance, in units of the step, for planes beyond the end of the other set."""
RUN = 1.5
"""Distance of neighbours, in units of the step, up to which no plane is missing between them."""
SEAM = 0.5
"""Maximum fraction of a set's planes that may overlap with a neighbouring station."""
FOLLOWS = 3.0
"""Maximum gap, in units of the greater step, between sets with different settings in one stack."""

Offsets = NDArray[np.float64]


@dataclass(frozen=True)
class FrameSet:
    """The frames of one acquisition, and the overlapping frames that were removed.

    Parameters
    ----------
    frames : tuple of Candidate
    overlap : tuple of Candidate
        Frames at positions that the rest of the set covers, too; not in `frames`.
    tracking : bool
        Whether the set is one of several images at one position.
    mixed : int
        Number of positions with several frames that the headers do not distinguish.
    """

    frames: tuple[Candidate, ...]
    overlap: tuple[Candidate, ...] = ()
    tracking: bool = False
    mixed: int = 0


@dataclass
class _Set:
    """Indices of frames, their distinct offsets (mm, ascending), and their common fields."""

    members: list[int]
    planes: Offsets
    phase: object
    order: tuple[object, ...]
    tracking: bool = False
    mixed: int = 0
    overlap: tuple[int, ...] = ()


def divide_acquisitions(frames: Sequence[Candidate], offsets: Offsets) -> list[FrameSet]:
    """Divide the frames of one grid into acquisitions.

    Parameters
    ----------
    frames : sequence of Candidate
        Frames of one grid.
    offsets : ndarray, shape (frames,)
        Position of each frame along the normal, mm.

    Returns
    -------
    list of FrameSet
        Disjoint sets that contain all frames; the set with the most positions comes first.
    """
    sets: list[_Set] = []
    for phase, parts in _parts(frames, offsets).items():
        chain: list[_Set] = []
        for part in sorted(parts, key=lambda part: part.order):
            _append(chain, part, offsets)
        sets += chain
        assert all(one.phase == phase for one in chain)
    sets = _join_phases(sets, frames, median_step(_distinct(offsets)))
    return [
        FrameSet(
            tuple(frames[i] for i in sorted(one.members)),
            tuple(frames[i] for i in sorted(one.overlap)),
            one.tracking,
            one.mixed,
        )
        for one in sets
    ]


def _parts(frames: Sequence[Candidate], offsets: Offsets) -> dict[object, list[_Set]]:
    """Divide frames into sets by phase, ignoring header fields that are noise."""
    phases = [phase_of(frame) for frame in frames]
    numbers = [acquisition_of(frame) for frame in frames]
    origins = [read_origin(frame) for frame in frames]
    divisions: list[list[tuple[object, tuple[int, str]]]] = [
        list(zip(phases, numbers, strict=True)),
        [(phase, (-1, "")) for phase in phases],
        [(origin, (-1, "")) for origin in origins],
    ]
    groups: dict[tuple[object, tuple[int, str]], list[int]] = {}
    for division in divisions:
        groups = {}
        for index, name in enumerate(division):
            groups.setdefault(name, []).append(index)
        if not _is_noise(list(groups.values()), offsets):
            break
    found: dict[object, list[_Set]] = {}
    for (phase, number), members in groups.items():
        for start, one in enumerate(_passes(frames, offsets, members)):
            one.phase, one.order = phase, (*number, start)
            found.setdefault(phase, []).append(one)
    return found


def _passes(frames: Sequence[Candidate], offsets: Offsets, members: Sequence[int]) -> list[_Set]:
    """Split one acquisition into passes over its positions, in temporal order."""
    some = [frames[i] for i in members]
    passes = split_passes(some, offsets[list(members)])
    planes = find_planes(offsets[list(members)])
    shared: dict[int, set[object]] = {}
    for frame, plane in zip(some, planes.tolist(), strict=True):
        shared.setdefault(plane, set()).add(same_object(frame))
    found = []
    for one in passes or [list(range(len(members)))]:
        ids = {int(planes[i]) for i in one}
        indices = [members[i] for i in one]
        alone = len(ids) == 1 and len(shared[next(iter(ids))]) > 2
        mixed = 0 if passes else sum(len(names) > 1 for names in shared.values())
        found.append(
            _Set(indices, _distinct(offsets[indices]), None, (), tracking=alone, mixed=mixed)
        )
    return found


def _distinct(offsets: Offsets) -> Offsets:
    order = np.sort(offsets)
    return order[np.unique(find_planes(order), return_index=True)[1]]


def _is_noise(groups: Sequence[Sequence[int]], offsets: Offsets) -> bool:
    """Whether fields are noise: they divide an evenly spaced stack into uneven parts."""
    if len(groups) < 2:
        return False
    bounds = sorted((offsets[list(g)].min(), offsets[list(g)].max()) for g in groups)
    if all(first[1] < second[0] for first, second in itertools.pairwise(bounds)):
        return False
    whole = _distinct(offsets)
    if len(whole) < len(offsets) or not is_even(whole):
        return False
    parts = [_distinct(offsets[list(group)]) for group in groups]
    small = sum(len(part) for part in parts if len(part) < 3)
    return 2 * small > len(whole) or any(not is_even(part) for part in parts if len(part) >= 3)


def _append(chain: list[_Set], part: _Set, offsets: Offsets) -> None:
    """Append a set to the last stack of its phase if it is consecutive, else start another."""
    last = chain[-1] if chain else None
    if last is None or part.tracking or last.tracking or part.mixed or last.mixed:
        chain.append(part)
        return
    hits, of_part = _overlap(last.planes, part.planes)
    if not hits.any():
        _merge(last, part)
        return
    small = part if of_part else last
    if not _is_seam(hits):
        chain.append(part)
        return
    away = np.abs(small.planes[hits][:, None] - offsets[small.members][None, :]).min(axis=0)
    gone = [i for i, mm in zip(small.members, away, strict=True) if mm < SAME_POSITION_MM]
    kept = [i for i in small.members if i not in set(gone)]
    small.members, small.planes = kept, small.planes[~hits]
    small.overlap += tuple(gone)
    _merge(last, part)


def _merge(last: _Set, part: _Set) -> None:
    last.members += part.members
    last.overlap += part.overlap
    last.planes = np.sort(np.concatenate([last.planes, part.planes]))


def _overlap(a: Offsets, b: Offsets) -> tuple[NDArray[np.bool_], bool]:
    """Find the planes of the smaller set that overlap the larger, and whether `b` is smaller."""
    of_b = len(b) <= len(a)
    large, small = (a, b) if of_b else (b, a)
    step = median_step(large) or median_step(small)
    if not step:
        return np.abs(small - large[0]) < 0.01, of_b
    place = np.searchsorted(large, small)
    below, above = large[np.maximum(place - 1, 0)], large[np.minimum(place, len(large) - 1)]
    near = NEAR * min(step, median_step(small) or step) * (1 - 1e-3)
    distance = np.minimum(np.abs(small - below), np.abs(small - above))
    is_beyond = (small < large[0]) | (small > large[-1])
    is_near = distance < np.where(is_beyond, max(SAME_POSITION_MM, AT_THE_END * step), near)
    is_inside = (place > 0) & (place < len(large)) & (above - below <= RUN * step)
    return is_near | is_inside, of_b


def _is_seam(hits: NDArray[np.bool_]) -> bool:
    """Whether the overlap is limited to one end of the smaller set."""
    count = int(hits.sum())
    at_one_end = bool(hits[:count].all() or hits[-count:].all())
    return at_one_end and count < len(hits) and count <= SEAM * len(hits)


def _join_phases(sets: list[_Set], frames: Sequence[Candidate], step: float) -> list[_Set]:
    """Join consecutive sets with different settings; the largest set comes first."""
    joined: list[_Set] = []
    origins: list[object] = []
    for one in sorted(sets, key=lambda one: (-len(one.planes), one.planes[0], one.order)):
        origin = read_origin(frames[one.members[0]])
        for other, its in zip(joined, origins, strict=True):
            if (
                not (one.tracking or other.tracking or one.mixed or other.mixed)
                and origin == its
                and not _overlap(other.planes, one.planes)[0].any()
                and _follows(other.planes, one.planes, step)
            ):
                _merge(other, one)
                break
        else:
            joined.append(one)
            origins.append(origin)
    return sorted(joined, key=lambda one: -len(one.planes))


def _follows(a: Offsets, b: Offsets, step: float) -> bool:
    """Whether the gap between two sets is small enough to be one of missing slices.

    The step of the whole grid is used if the sets have no step themselves.
    """
    gap = float(np.abs(a[:, None] - b[None, :]).min()) if len(a) * len(b) < 1 << 20 else 0.0
    return gap <= FOLLOWS * max(median_step(a), median_step(b), step)
