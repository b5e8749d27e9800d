"""Solids as signed distances in mm: negative inside, positive outside.

A point set is three arrays (u, v, w) that broadcast together: to the left, to the back, to the
head. Distances are exact for balls and capsules and near the surface for the others, which is all
that a cortical shell and a soft edge need.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]
Points = tuple[Field, Field, Field]
Point = tuple[float, float, float]


def ellipsoid(points: Points, centre: Point, radii: Point) -> Field:
    """An ellipsoid with axes along u, v and w."""
    scaled = [(p - c) / r for p, c, r in zip(points, centre, radii, strict=True)]
    length = np.sqrt(scaled[0] ** 2 + scaled[1] ** 2 + scaled[2] ** 2)
    return np.asarray((length - 1) * np.float32(min(radii)), np.float32)


def capsule(points: Points, start: Point, end: Point, radius: float, taper: float = 1.0) -> Field:
    """All within a radius of a segment; the radius falls to ``taper * radius`` at its end."""
    way = np.subtract(end, start)
    square = float(way @ way) or 1.0
    share = sum(
        (p - s) * np.float32(w / square) for p, s, w in zip(points, start, way, strict=True)
    )
    share = np.clip(share, 0, 1)
    gap = sum(
        (p - np.float32(s) - share * np.float32(w)) ** 2
        for p, s, w in zip(points, start, way, strict=True)
    )
    return np.asarray(np.sqrt(gap) - radius * (1 + (taper - 1) * share), np.float32)


def chain(points: Points, path: Sequence[Point], radius: float) -> Field:
    """Capsules of one radius along a path."""
    pieces = [capsule(points, start, end, radius) for start, end in pairwise(path)]
    return np.asarray(np.minimum.reduce(pieces), np.float32)


def column(
    points: Points,
    centre: Point,
    half_width: float,
    half_depth: float,
    half_height: NDArray[np.floating[Any]] | float,
    power: float = 2.6,
) -> Field:
    """An upright column with a rounded, rather square cross-section (a superellipse).

    Its half height may vary over the cross-section.
    """
    u = np.abs(points[0] - centre[0]) / half_width
    v = np.abs(points[1] - centre[1]) / half_depth
    side = ((u**power + v**power) ** (1 / power) - 1) * min(half_width, half_depth)
    end = np.abs(points[2] - centre[2]) - half_height
    return np.asarray(np.maximum(side, end), np.float32)


def join(first: Field, second: Field, softness: float) -> Field:
    """The union of two solids with a fillet of about `softness` mm where they meet."""
    blend = np.clip(0.5 + 0.5 * (second - first) / softness, 0, 1)
    return np.asarray(
        second + (first - second) * blend - softness * blend * (1 - blend), np.float32
    )


def without(solid: Field, hole: Field) -> Field:
    """A solid less another."""
    return np.maximum(solid, -hole)
