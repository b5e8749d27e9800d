"""Group frames that lie on one grid: one series, one matrix, one pixel spacing, one orientation.

Spacings and directions that differ by the rounding of decimal strings alone are one grid.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.dicom.planes import Vector
from pipeline.dicom.selection import Candidate

DIRECTION_TOLERANCE = 1e-3
"""Greatest difference of a direction's component within a grid."""
ROUNDED_DIRECTION = 6e-3
"""The same where one of the two has three decimals or fewer."""
SPACING_TOLERANCE = 2e-3
"""Greatest difference of a pixel spacing within a grid, as a share of it. 0.488 stands for
0.48828125 (500 mm over 1024 pixels); fields of view of one scanner differ by 1 % and more."""


@dataclass(frozen=True)
class Grid:
    """The frames of one grid.

    Parameters
    ----------
    frames : tuple of Candidate
    row_direction, column_direction : (float, float, float)
        Unit vectors, those written with the most decimals.
    spacing : (float, float)
        mm between rows and between columns, likewise.
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
        """Decimals that the directions were written with."""
        return 2 if self.rounded else _decimals(self.directions)


def group_grids(frames: Iterable[Candidate]) -> list[Grid]:
    """Group frames by series, matrix, spacing and orientation, whatever order they come in."""
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
    # The most frequent form comes first, and those that differ from it by rounding join it.
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
    """The most decimals that one of the values is written with."""
    return max(_decimals_of(value) for value in values)


def _decimals_of(value: float) -> int:
    if not math.isfinite(value):
        return 0
    text = repr(value)
    mantissa, _, exponent = text.partition("e")
    digits = len(mantissa.partition(".")[2].rstrip("0"))
    return max(0, digits - int(exponent or 0))
