"""Choose the part of a study to read, by the rules of decision 0005.

Parts that form a stack are filtered by criteria in a fixed order. Each criterion keeps the best
parts, and is recorded as the reason of the parts that it removes.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.dicom.series.image_type import Origin
from pipeline.dicom.series.kernels import Sharpness
from pipeline.dicom.series.parts import SeriesPart
from pipeline.dicom.series.regions import Region
from pipeline.dicom.stack import find_normal

EXTENT_SHARE = 0.8
"""Fraction of the longest extent above which stacks count as equally long."""
STEP_RATIO = 1.5
"""Ratio to the finest step up to which stacks count as equally fine."""


@dataclass(frozen=True)
class SeriesRule:
    """Series requested by the user, and the location of the vertebrae if known.

    Parameters
    ----------
    pattern : str
        SeriesInstanceUID, SeriesNumber, or a case-insensitive regular expression that is searched
        in SeriesDescription and ConvolutionKernel. Empty to choose by the rules alone.
    focus : ndarray, shape (points, 3), or None
        Points around the vertebrae, LPS, mm, found in a mask.
    """

    pattern: str = ""
    focus: NDArray[np.float64] | None = None

    def matches(self, part: SeriesPart) -> bool:
        """Whether a part matches the user's pattern."""
        if not self.pattern or self.pattern == part.series:
            return True
        if self.pattern.isdigit():
            return part.facts.number == int(self.pattern)
        found = re.compile(self.pattern, re.IGNORECASE)
        return any(found.search(text) for text in (part.facts.description, part.facts.kernel))


Criterion = tuple[Callable[[SeriesPart], float], float, Callable[[SeriesPart], str]]
"""Value to minimise, ratio to the best that counts as equal (0 for none), and reason."""


def choose_part(
    parts: Sequence[SeriesPart], rule: SeriesRule
) -> tuple[SeriesPart | None, dict[int, str]]:
    """Choose the part to read.

    Parameters
    ----------
    parts : sequence of SeriesPart
        Parts in the order of `pipeline.dicom.series.parts.find_parts`.
    rule : SeriesRule

    Returns
    -------
    chosen : SeriesPart or None
    reasons : dict of int to str
        Reason why each part is chosen or not, by index; contains no free text of headers.
    """
    reasons: dict[int, str] = {}
    left: list[int] = []
    asked = bool(rule.pattern)
    for index, part in enumerate(parts):
        if not rule.matches(part):
            reasons[index] = "not the series asked for"
        elif part.stack is None:
            reasons[index] = describe_no_stack(part)
        elif part.facts.origin >= Origin.PROJECTION and not asked:
            reasons[index] = f"{part.facts.origin.name.lower()}, never read in place of slices"
        else:
            left.append(index)
    if not left:
        return None, reasons
    last = "the only stack" if len(left) == 1 else ""
    for value, ratio, why in _criteria(rule):
        values = {index: value(parts[index]) for index in left}
        best = min(values.values())
        limit = best * ratio if ratio else best
        worse = [index for index in left if values[index] > limit + 1e-9]
        for index in worse:
            reasons[index] = why(parts[index])
        left = [index for index in left if index not in set(worse)]
        if worse and len(left) == 1:
            last = f"others: {why(parts[worse[0]])}"
    for index in left[1:]:
        reasons[index] = "as good; a lower series number, an earlier acquisition is read"
    if len(left) > 1:
        last = "the first of equals by series number and time"
    reasons[left[0]] = f"asked for; {last}" if asked else last
    return parts[left[0]], reasons


def _criteria(rule: SeriesRule) -> list[Criterion]:
    return [
        (lambda p: p.facts.origin, 0, lambda p: f"{p.facts.origin.name.lower()}, not original"),
        (lambda p: -_coverage(p, rule.focus), 0, lambda p: "does not show what the mask shows"),
        (lambda p: p.facts.region, 0, _describe_region),
        (lambda p: -p.extent, EXTENT_SHARE, lambda p: f"shorter: {p.extent:.0f} mm"),
        (lambda p: p.step, STEP_RATIO, lambda p: f"coarser: {p.step:.2f} mm between slices"),
        (lambda p: p.facts.sharpness, 0, lambda p: f"kernel {_name(p.facts.sharpness)}"),
        (lambda p: -p.slices, 0, lambda p: f"fewer slices: {p.slices}"),
        (lambda p: p.step, 0, lambda p: f"coarser: {p.step:.2f} mm between slices"),
    ]


def _coverage(part: SeriesPart, focus: NDArray[np.float64] | None) -> float:
    """Fraction of the focus's extent along the normal that a stack covers, to one decimal."""
    if focus is None or part.stack is None:
        return 0.0
    stack = part.stack
    normal = find_normal(stack.row_direction, stack.column_direction, stack.orientation)
    heights = focus @ normal
    low, high = float(heights.min()), float(heights.max())
    inside = min(high, stack.offsets[-1]) - max(low, stack.offsets[0])
    return round(max(0.0, inside) / max(high - low, 1e-6), 1)


def _describe_region(part: SeriesPart) -> str:
    return "of another region" if part.facts.region is Region.OTHER else "its region is not named"


def _name(sharpness: Sharpness) -> str:
    return {
        Sharpness.SHARP: "sharp",
        Sharpness.MEDIUM: "less sharp",
        Sharpness.UNKNOWN: "not known as sharp",
        Sharpness.SOFT: "soft",
    }[sharpness]


def describe_no_stack(part: SeriesPart) -> str:
    """Return the reason why a part forms no stack."""
    origin = part.facts.origin
    if origin >= Origin.SCOUT:
        return "a scout (localizer radiograph)" if origin is Origin.SCOUT else "a page"
    if not part.axial:
        return "not axial"
    return "images at one position" if len(part.frames) > 1 else "one slice"
