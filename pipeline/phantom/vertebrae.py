"""Shapes of C1 to T2, each in its own frame in mm with the origin in the centre of the body.

Sizes follow Panjabi, Duranceau, Goel, Oxland and Takata, "Cervical human vertebrae: quantitative
three-dimensional anatomy of the middle and lower regions", Spine 16(8), 1991 (C3 to C7: bodies some
16 to 23 mm wide, 15 to 18 deep, 11 to 13 high; canals 23 to 25 wide and 14 to 18 deep) and, for C1
and C2, Doherty and Heggeness, Spine 19(22), 1994 and 20(3), 1995 (ring of C1 some 75 to 80 mm
across with its transverse processes; dens some 10 mm thick and 15 high), rounded.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from pipeline.phantom.shapes import (
    Field,
    Points,
    capsule,
    chain,
    column,
    ellipsoid,
    join,
    without,
)


@dataclass(frozen=True)
class Form:
    """Sizes of one vertebra in mm.

    Parameters
    ----------
    width, depth, height : float
        Size of the body.
    canal_width, canal_depth : float
        Size of the spinal canal.
    spinous : float
        Length of the spinous process behind the lamina.
    drop : float
        Distance of the tip of the spinous process below the centre of the body.
    reach : float
        Distance from the centre to the tip of a transverse process.
    bifid : bool
        Whether the spinous process has two tips.
    """

    width: float
    depth: float
    height: float
    canal_width: float
    canal_depth: float
    spinous: float
    drop: float
    reach: float
    bifid: bool = True


FORMS = {
    "C1": Form(0.0, 0.0, 11.0, 29.0, 30.0, 4.0, 0.0, 38.0, bifid=False),
    "C2": Form(19.0, 15.5, 17.0, 24.5, 18.0, 15.0, 7.0, 28.0),
    "C3": Form(17.5, 15.5, 12.0, 23.5, 15.5, 13.0, 6.0, 26.0),
    "C4": Form(18.0, 15.8, 12.0, 24.0, 15.5, 13.0, 7.0, 26.5),
    "C5": Form(18.8, 16.0, 12.0, 24.5, 15.5, 15.0, 8.0, 27.5),
    "C6": Form(20.5, 16.5, 12.0, 25.0, 15.5, 20.0, 9.0, 28.5),
    "C7": Form(22.5, 16.8, 13.5, 24.0, 15.5, 27.0, 11.0, 31.0, bifid=False),
    "T1": Form(25.0, 17.5, 15.5, 21.0, 15.5, 29.0, 15.0, 36.0, bifid=False),
    "T2": Form(26.0, 18.5, 16.5, 18.0, 15.5, 28.0, 19.0, 34.0, bifid=False),
}

LEVELS = tuple(FORMS)

PITCH = {
    "C1": 19.0,
    "C2": 18.5,
    "C3": 17.0,
    "C4": 17.0,
    "C5": 17.0,
    "C6": 17.3,
    "C7": 18.5,
    "T1": 20.0,
    "T2": 21.0,
}
"""Distance from the centre of a vertebra to that of the next one below, in mm."""


def shape_vertebra(level: str, points: Points) -> Field:
    """Signed distance of one vertebra in mm.

    Parameters
    ----------
    level : str
        Level of the vertebra, one of `LEVELS`.
    points : tuple of ndarray
        Points (u, v, w) in the frame of the vertebra, in mm.
    """
    if level == "C1":
        return _atlas(points)
    form = FORMS[level]
    solid = join(_body(form, points), _arch(form, points), 1.5)
    if level == "C2":
        solid = join(solid, _dens(form, points), 2.0)
    return solid


@cache
def find_extent(level: str) -> NDArray[np.float64]:
    """Bounds of a vertebra in its frame in mm, with a margin of about 3 mm.

    Returns
    -------
    ndarray, shape (2, 3), float64
        Minimum and maximum (u, v, w).
    """
    step = 3.0
    side = np.arange(-60, 100, step, dtype=np.float32)
    points = (side[:, None, None], side[:, None], side)
    near = side[np.argwhere(shape_vertebra(level, points) < step)]
    return np.stack([near.min(axis=0), near.max(axis=0)]).astype(np.float64)


def _mirrored(points: Points) -> Points:
    """Replace u with its absolute value, since vertebrae are symmetric."""
    return (np.abs(points[0]), points[1], points[2])


def _body(form: Form, points: Points) -> Field:
    u, v, _ = points
    across = np.abs(u) / (form.width / 2)
    # The waist, the rims of the endplates, and the uncinate processes at the sides.
    lip = 1.8 * np.clip(across - 0.72, 0, 0.4) / 0.4
    half_height = form.height / 2 - 0.8 + lip + np.abs(v) / form.depth
    return column(points, (0, 0, 0), form.width / 2, form.depth / 2, half_height)


def _arch(form: Form, points: Points) -> Field:
    half = _mirrored(points)
    back = form.depth / 2
    pillar_u = form.canal_width / 2 + 4.8
    pillar_v = back + 5.0
    rear = back + form.canal_depth + 2.5
    # Facets slope down towards the back, so the pillar is sheared.
    sheared = (half[0], half[1], half[2] + 0.6 * (half[1] - pillar_v))
    pillar = column(sheared, (pillar_u, pillar_v, 0), 5.2, 5.6, form.height / 2 + 0.8, 2.4)
    pedicle = capsule(
        half, (form.width * 0.36, back - 3, 1), (pillar_u - 1, pillar_v - 1, 0.5), 3.1
    )
    lamina = capsule(half, (pillar_u - 1, pillar_v + 3, -1), (0, rear, -2.5), 2.7)
    lamina = np.minimum(
        lamina, capsule(half, (pillar_u - 1, pillar_v + 3, -4), (0, rear, -5.5), 2.5)
    )
    solid = join(join(pillar, pedicle, 1.5), lamina, 1.5)
    tip = (0.0, rear + form.spinous, -form.drop)
    solid = join(solid, capsule(points, (0, rear, -4), tip, 3.0, 0.85), 2.0)
    if form.bifid:
        end = (3.6, rear + form.spinous + 2.5, -form.drop - 1.0)
        solid = join(solid, capsule(half, tip, end, 2.2), 1.0)
    solid = join(solid, _transverse(form, half), 1.2)
    canal = column(
        points,
        (0, back + form.canal_depth / 2, 0),
        form.canal_width / 2,
        form.canal_depth / 2,
        60,
        2.0,
    )
    return without(solid, canal)


def _transverse(form: Form, half: Points) -> Field:
    """Transverse process; that of cervical vertebrae has the foramen of the vertebral artery."""
    middle = form.depth / 2
    if form.width > 24:
        return capsule(half, (form.width / 2, middle + 4, 2), (form.reach, middle + 9, 3), 4.0)
    front = capsule(half, (form.width / 2 - 2, -1, 0), (form.reach, 1, -3), 2.6)
    rear = capsule(half, (form.canal_width / 2 + 3, middle + 2, 0), (form.reach, 3, -3), 2.6)
    hole = column(half, (form.width / 2 + 5.0, middle / 2 + 0.5, 0), 3.0, 3.0, 40, 2.0)
    return without(np.minimum(front, rear), hole)


def _dens(form: Form, points: Points) -> Field:
    half = _mirrored(points)
    top = form.height / 2
    dens = capsule(points, (0, -1.0, top - 2), (0, -1.5, top + 12.5), 5.3, 0.9)
    shoulder = ellipsoid(half, (13.5, 3.0, top - 4.5), (8.5, 8.0, 4.5))
    return join(dens, shoulder, 1.5)


def _atlas(points: Points) -> Field:
    """C1, a ring without a body; the origin is in the centre of the dens."""
    half = _mirrored(points)
    mass = ellipsoid(half, (20.5, 4.0, 0), (8.0, 10.5, 7.8))
    front = chain(half, [(0, -10.5, 0.5), (9, -8.8, 0.5), (17, -2.5, 0)], 3.3)
    rear = chain(half, [(0, 34.0, -1), (10, 31.5, -0.5), (18, 23, 0.5), (21, 11, 0.5)], 2.9)
    wing = capsule(half, (23, 4, -1), (37.5, 7, -2), 4.2, 0.8)
    hole = column(half, (30.0, 5.5, 0), 3.2, 3.2, 40, 2.0)
    ring = join(join(mass, front, 2.0), rear, 2.0)
    return without(join(ring, wing, 2.0), hole)
