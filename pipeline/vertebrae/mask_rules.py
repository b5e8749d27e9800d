"""Check that the levels of a label mask are plausible as the vertebrae of one spine.

Masks have mistakes: levels numbered from the feet, two levels exchanged, a level skipped, a wrong
label. The distances between the vertebrae of one person are in proportion, and so are their sizes.
A level that is not in proportion is rejected with a reason, and a mask in which most levels are
rejected is refused. Not here: whether a mask is on bone (`pipeline.vertebrae.locate`), and the
output of a network (`pipeline.vertebrae.anatomy`).

Distances are those of adults: heights of bodies and discs after Panjabi et al., Spine 16(8), 1991
(cervical and thoracic) and Spine 17(3), 1992 (lumbar). Volumes are those of manually drawn masks:
C1 to T5 of one patient of VerSe, and L1 to L5 of another, are within 8 % of these proportions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

from pipeline.vertebrae.anatomy import TRUNCATED_MM3, along_spine
from pipeline.vertebrae.maskparts import MaskPart
from storage_schemas.errors import StudyError
from storage_schemas.vertebrae import LEVELS

STEPS_MM = (
    *(18.0, 20.0, 17.0, 17.0, 17.0, 17.0, 18.0),
    *(20.0, 22.0, 23.0, 24.0, 24.0, 24.5, 25.0, 26.0, 27.0, 28.0, 29.0, 31.0),
    *(33.0, 34.0, 35.0, 34.0),
)
"""Distance in mm from the centre of each of `LEVELS` to the next one below, in an adult."""
VOLUMES_CM3 = (
    *(11.0, 16.0, 10.5, 10.5, 11.0, 12.0, 14.0),
    *(17.0, 18.0, 18.0, 20.0, 21.0, 23.0, 25.0, 28.0, 31.0, 34.0, 37.0, 40.0),
    *(45.0, 49.0, 53.0, 56.0, 58.0),
)
"""Volume of each of `LEVELS` in an adult, including arch and processes."""
SCALE = (0.3, 1.7)
"""Range of a person's distances relative to an adult's, from newborns to very tall patients."""
STEP_SHARE = (0.6, 1.6)
"""Range of a distance relative to the person's other distances; a skipped level gives 0.5 or 2."""
SIZE_SHARE = (0.15, 1.8)
"""Range of a volume relative to the person's other volumes; two vertebrae in one give 2."""
MIN_STEP_FOR_SIZE = 0.62
"""Minimum ratio of the scale of distances to the scale of sizes, since vertebrae do not overlap."""
MIN_STEP_SHARE_CUT = 0.1
"""Minimum of `STEP_SHARE` for a truncated vertebra, whose centre is shifted."""
CUT_SHARE = 0.5
"""Maximum shift of the centre of a truncated vertebra, relative to the distance."""
MAX_INVERTED = 0.75
"""Maximum fraction of pairs of levels in reverse order; above it, levels run from the feet."""
GRID_SHARE = 0.5
"""Tolerance of a centre, relative to the largest side of a voxel."""
MIN_KEPT = 0.5
"""Minimum fraction of a mask's levels that must be plausible for any of them to be accepted."""
_NOT_FOUND = "vertebra-not-found"
_OUT_OF_ORDER = "vertebra-out-of-order"

Missing = dict[str, tuple[str, str]]


@dataclass(frozen=True)
class _Level:
    name: str
    place: int
    """Index in `LEVELS`."""
    middle: NDArray[np.float64]
    height: float
    """Along the spine, mm."""
    cm3: float
    cut: bool


def check_levels(
    parts: Sequence[MaskPart], lps_from_index: NDArray[np.float64], cut: Mapping[str, bool]
) -> Missing:
    """Find the levels of a mask whose labels are implausible.

    Parameters
    ----------
    parts : sequence of MaskPart
        All levels of the mask.
    lps_from_index : ndarray, shape (4, 4), float64
        Affine from homogeneous indices of the mask to LPS mm.
    cut : mapping of str to bool
        Whether the scan or the mask truncates the level.

    Returns
    -------
    dict of str to (str, str)
        Kind, ``vertebra-not-found`` or ``vertebra-out-of-order``, and reason of each such level.

    Raises
    ------
    StudyError
        ``vertebra-out-of-order`` where the levels are numbered from the feet, are too far apart or
        too close, skip a level, or most of them contradict each other.
    """
    missing: Missing = {part.level: (_NOT_FOUND, part.fault) for part in parts if part.fault}
    levels = _measure([part for part in parts if not part.fault], lps_from_index, cut)
    missing |= _check_sizes(levels)
    levels = [level for level in levels if level.name not in missing]
    coarsest = float(np.linalg.norm(lps_from_index[:3, :3], axis=0).max())
    missing |= _check_steps(levels, GRID_SHARE * coarsest)
    kept = len(parts) - len(missing)
    if missing and kept < MIN_KEPT * len(parts):
        shown = "; ".join(f"{level} {why}" for level, (_, why) in list(missing.items())[:3])
        kind = max(kind for kind, _ in missing.values())
        raise StudyError(kind, f"{kept} of the mask's {len(parts)} levels can be believed: {shown}")
    return missing


def _measure(
    parts: Sequence[MaskPart], lps_from_index: NDArray[np.float64], cut: Mapping[str, bool]
) -> list[_Level]:
    """Measure position and size of each level, from head to feet by label."""
    parts = sorted(parts, key=lambda part: LEVELS.index(part.level))
    middles, sizes = [], []
    for part in parts:
        # Axis by axis, which needs no list of voxels.
        counts = [part.inside.sum(axis=others) for others in ((1, 2), (0, 2), (0, 1))]
        index = [
            side.start + float(np.average(np.arange(len(count)), weights=count))
            for side, count in zip(part.extent, counts, strict=True)
        ]
        middles.append(lps_from_index[:3, :3] @ index + lps_from_index[:3, 3])
        sizes.append(int(counts[0].sum()))
    heights = along_spine(np.reshape(middles, (-1, 3))) if parts else np.zeros(0)
    cm3 = abs(float(np.linalg.det(lps_from_index[:3, :3]))) / 1000
    return [
        _Level(p.level, LEVELS.index(p.level), m, float(h), n * cm3, cut[p.level])
        for p, m, h, n in zip(parts, middles, heights, sizes, strict=True)
    ]


def _check_sizes(levels: Sequence[_Level]) -> Missing:
    """Levels with an implausible volume."""
    whole = [level.cm3 / VOLUMES_CM3[level.place] for level in levels if not level.cut]
    typical = float(np.median(whole)) if len(whole) > 2 else None
    missing: Missing = {}
    for level in levels:
        adult = VOLUMES_CM3[level.place]
        least, most = TRUNCATED_MM3 / 1000, SCALE[1] ** 3 * adult
        if typical is not None:  # with two levels, it is unknown which one is wrong
            most = min(most, SIZE_SHARE[1] * typical * adult)
            least = least if level.cut else max(least, SIZE_SHARE[0] * typical * adult)
        if not least <= level.cm3 <= most:
            why = f"has {level.cm3:.2f} cm3, beside the others {least:.2g} to {most:.2g} are right"
            missing[level.name] = (_NOT_FOUND, why)
    return missing


def _check_steps(levels: Sequence[_Level], slack_mm: float) -> Missing:
    """Levels at implausible distances from the others along the spine."""
    pairs = list(combinations(levels, 2))
    if sum(upper.height < lower.height for upper, lower in pairs) > MAX_INVERTED * len(pairs):
        first, last = levels[0], levels[-1]
        raise StudyError(
            _OUT_OF_ORDER,
            f"the mask numbers its levels from the feet to the head: {first.name} lies "
            f"{last.height - first.height:.0f} mm below {last.name}",
        )
    scale = _scale(levels)
    conflicts = _conflicts(levels, scale, slack_mm)
    _check_scale(levels, scale, whole=not conflicts)
    if not conflicts:
        return {}
    _check_skips(levels, conflicts)
    # A wrong label affects distances in the order of labels, not those in the order of heights.
    scale = _scale(sorted(levels, key=lambda level: -level.height), in_space=True)
    missing: Missing = {}
    while conflicts := _conflicts(levels, scale, slack_mm):
        for name in _most_conflicting(levels, conflicts):
            missing[name] = (_OUT_OF_ORDER, next(iter(conflicts[name].values())))
        levels = [level for level in levels if level.name not in missing]
    return missing


def _most_conflicting(
    levels: Sequence[_Level], conflicts: Mapping[str, Mapping[str, str]]
) -> set[str]:
    """The levels with the most conflicts, and those exchanged with them with almost as many."""
    most = max(len(others) for others in conflicts.values())
    accused = {name for name, others in conflicts.items() if len(others) == most}
    for upper, lower in combinations(levels, 2):
        pair = {upper.name, lower.name}
        exchanged = upper.height < lower.height and pair & accused
        if exchanged and min(len(conflicts[name]) for name in pair) >= most - 1:
            accused |= pair
    return accused


def _scale(levels: Sequence[_Level], *, in_space: bool = False) -> float | None:
    """Median distance relative to an adult's; None if all distances have a truncated end."""
    shares = [
        (upper.height - lower.height)
        / (STEPS_MM[min(upper.place, 22)] if in_space else _adult_mm(upper, lower))
        for upper, lower in pairwise(levels)
        if not (upper.cut or lower.cut)
    ]
    return float(np.median(shares)) if shares else None


def _adult_mm(upper: _Level, lower: _Level) -> float:
    return sum(STEPS_MM[upper.place : lower.place])


def _check_scale(levels: Sequence[_Level], scale: float | None, *, whole: bool) -> None:
    """Refuse distances that are implausible for any person, or too small for the volumes."""
    if scale is None:
        return
    step = scale * float(np.mean([STEPS_MM[min(level.place, 22)] for level in levels]))
    sizes = [level.cm3 / VOLUMES_CM3[level.place] for level in levels if not level.cut]
    least = max(SCALE[0], MIN_STEP_FOR_SIZE * float(np.cbrt(np.median(sizes))) if whole else 0)
    if not least <= scale <= SCALE[1]:
        raise StudyError(
            _OUT_OF_ORDER,
            f"the mask's levels lie {step:.0f} mm apart, vertebrae of this size "
            f"{step * least / scale:.0f} to {step * SCALE[1] / scale:.0f} mm",
        )


def _conflicts(
    levels: Sequence[_Level], scale: float | None, slack_mm: float
) -> dict[str, dict[str, str]]:
    """For each level, the levels at implausible distances with reasons, adjacent levels first."""
    conflicts: dict[str, dict[str, str]] = {}
    pairs = combinations(levels, 2)
    for upper, lower in sorted(pairs, key=lambda pair: pair[1].place - pair[0].place):
        adult = _adult_mm(upper, lower)
        low, high = (scale, scale) if scale is not None else SCALE
        cut_mm = upper.cut * STEPS_MM[min(upper.place, 22)] + lower.cut * STEPS_MM[lower.place - 1]
        slack = slack_mm + CUT_SHARE * high * cut_mm
        least = max(STEP_SHARE[0] * low * adult - slack, MIN_STEP_SHARE_CUT * low * adult)
        most = STEP_SHARE[1] * high * adult + slack
        along = upper.height - lower.height
        apart = float(np.linalg.norm(upper.middle - lower.middle))
        if along >= least and apart <= most:
            continue
        for level, other, sign in (upper, lower, 1), (lower, upper, -1):
            found = f"{abs(along):.0f} mm {'above' if sign * along > 0 else 'below'} {other.name}"
            wanted = f"{least:.0f} to {most:.0f} mm {'above' if sign > 0 else 'below'}"
            conflicts.setdefault(level.name, {})[other.name] = (
                f"lies {found} and {apart:.0f} mm from it, its place is {wanted}"
            )
    return conflicts


def _check_skips(levels: Sequence[_Level], conflicts: Mapping[str, Mapping[str, str]]) -> None:
    """Refuse a mask with a single wrong distance, from which on the numbering is wrong.

    A misplaced level is different: it affects the distances on both sides, or, if it is the first
    or the last level, it contradicts more levels than the adjacent one.
    """
    wrong = [lower.name in conflicts.get(upper.name, {}) for upper, lower in pairwise(levels)]
    for at, (upper, lower) in enumerate(pairwise(levels)):
        if not wrong[at] or any(wrong[max(0, at - 1) : at] + wrong[at + 1 : at + 2]):
            continue
        inside = 0 < at < len(wrong) - 1
        equal = len(conflicts[upper.name]) == len(conflicts[lower.name])
        if upper.height > lower.height and (inside or equal):
            why = conflicts[upper.name][lower.name]
            raise StudyError(
                _OUT_OF_ORDER,
                f"the mask's numbering skips or repeats a level: {upper.name} {why}",
            )
