"""Group frames by grid: the same series, matrix, pixel spacing and orientation.

Spacings and directions that differ only by the rounding of decimal strings are one grid.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.dicom.planes import Vector
from pipeline.dicom.selection import Candidate

DIRECTION_TOLERANCE = 1e-3
"""Maximum difference of a direction cosine within a grid."""
ROUNDED_DIRECTION = 6e-3
"""Maximum difference of a direction cosine if either direction has at most three decimals."""
SPACING_TOLERANCE = 2e-3
"""Maximum relative difference of pixel spacing within a grid. 0.488 stands for 0.48828125
(500 mm over 1024 pixels); fields of view of one scanner differ by 1 % or more."""


@dataclass(frozen=True)
class Grid:
    """The frames of one grid.

    Parameters
    ----------
    frames : tuple of Candidate
    row_direction, column_direction : (float, float, float)
        Unit vectors, taken from the frame with the most decimals.
    spacing : (float, float)
        Distance between rows and between columns, mm, taken from the frame with the most decimals.
    """

    frames: tuple[Candidate, ...]
    row_direction: Vector
    column_direction: Vector
    spacing: tuple[float, float]


@dataclass(frozen=True, order=True)
class _Form:
    series: str
    rows: int
    columns: int
    spacing: tuple[float, float]
    directions: tuple[float, ...]
    rounded: bool

    def is_close(self, other: "_Form") -> bool:
        if (self.series, self.rows, self.columns) != (other.series, other.rows, other.columns):
            return False
        far = max(abs(a / b - 1) for a, b in zip(self.spacing, other.spacing, strict=True))
        turned = max(abs(a - b) for a, b in zip(self.directions, other.directions, strict=True))
        rounded = min(self.precision, other.precision) <= 3
        return far <= SPACING_TOLERANCE and turned <= (
            ROUNDED_DIRECTION if rounded else DIRECTION_TOLERANCE
        )

    @property
    def precision(self) -> int:
        """Number of decimals of the directions."""
        return 2 if self.rounded else _decimals(self.directions)


def group_grids(frames: Iterable[Candidate]) -> list[Grid]:
    """Group frames by series, matrix, spacing and orientation, independently of their order."""
    exact: dict[_Form, list[Candidate]] = {}
    for candidate in frames:
        header, plane = candidate.header, candidate.plane
        form = _Form(
            header.series,
            header.rows,
            header.columns,
            plane.spacing,
            (*plane.row_direction, *plane.column_direction),
            plane.rounded,
        )
        exact.setdefault(form, []).append(candidate)
    groups: list[tuple[_Form, list[_Form]]] = []
    # The most frequent form comes first; forms that differ from it only by rounding join it.
    for form in sorted(exact, key=lambda form: (-len(exact[form]), form)):
        for first, forms in groups:
            if first.is_close(form):
                forms.append(form)
                break
        else:
            groups.append((form, [form]))
    return [_make_grid(forms, exact) for _, forms in groups]


def _make_grid(forms: Sequence[_Form], exact: dict[_Form, list[Candidate]]) -> Grid:
    spacing = max(forms, key=lambda form: _decimals(form.spacing)).spacing
    turned = max(forms, key=lambda form: form.precision).directions
    return Grid(
        frames=tuple(candidate for form in forms for candidate in exact[form]),
        row_direction=(turned[0], turned[1], turned[2]),
        column_direction=(turned[3], turned[4], turned[5]),
        spacing=spacing,
    )


def _decimals(values: Sequence[float]) -> int:
    """Maximum number of decimals of the values."""
    return max(_decimals_of(value) for value in values)


def _decimals_of(value: float) -> int:
    if not math.isfinite(value):
        return 0
    text = repr(value)
    mantissa, _, exponent = text.partition("e")
    digits = len(mantissa.partition(".")[2].rstrip("0"))
    return max(0, digits - int(exponent or 0))
