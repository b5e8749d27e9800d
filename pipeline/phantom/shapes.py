"""Signed distance functions of solids in mm, negative inside and positive outside.

Points are three arrays (u, v, w) that broadcast together; u points to the left, v to the back and w
to the head. Distances are exact for spheres and capsules, and near the surface for other solids,
which is enough for a cortical shell and soft edges.
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
    """Ellipsoid with axes along u, v and w."""
    scaled = [(p - c) / r for p, c, r in zip(points, centre, radii, strict=True)]
    length = np.sqrt(scaled[0] ** 2 + scaled[1] ** 2 + scaled[2] ** 2)
    return np.asarray((length - 1) * np.float32(min(radii)), np.float32)


def capsule(points: Points, start: Point, end: Point, radius: float, taper: float = 1.0) -> Field:
    """Capsule around a segment; the radius changes linearly to ``taper * radius`` at its end."""
    axis = np.subtract(end, start)
    square = float(axis @ axis) or 1.0
    share = sum(
        (p - s) * np.float32(a / square) for p, s, a in zip(points, start, axis, strict=True)
    )
    share = np.clip(share, 0, 1)
    gap = sum(
        (p - np.float32(s) - share * np.float32(a)) ** 2
        for p, s, a in zip(points, start, axis, strict=True)
    )
    return np.asarray(np.sqrt(gap) - radius * (1 + (taper - 1) * share), np.float32)


def chain(points: Points, path: Sequence[Point], radius: float) -> Field:
    """Union of capsules of the same radius along a path."""
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
    """Vertical column whose cross-section is a superellipse.

    Parameters
    ----------
    points : tuple of ndarray
        Points (u, v, w) in mm.
    centre : (float, float, float)
        Centre of the column in mm.
    half_width, half_depth : float
        Half axes of the cross-section in mm.
    half_height : ndarray or float
        Half height in mm, which may vary over the cross-section.
    power : float
        Exponent of the superellipse; 2 is an ellipse, larger values are closer to a rectangle.
    """
    u = np.abs(points[0] - centre[0]) / half_width
    v = np.abs(points[1] - centre[1]) / half_depth
    side = ((u**power + v**power) ** (1 / power) - 1) * min(half_width, half_depth)
    end = np.abs(points[2] - centre[2]) - half_height
    return np.asarray(np.maximum(side, end), np.float32)


def join(first: Field, second: Field, softness: float) -> Field:
    """Union of two solids with a fillet of about `softness` mm."""
    blend = np.clip(0.5 + 0.5 * (second - first) / softness, 0, 1)
    return np.asarray(
        second + (first - second) * blend - softness * blend * (1 - blend), np.float32
    )


def without(solid: Field, hole: Field) -> Field:
    """Difference of two solids."""
    return np.maximum(solid, -hole)
