"""Render everything except the vertebrae: outline, fat, muscle, airway, skull, mandible, hyoid.

Hounsfield units are typical values (Bushberg et al., The Essential Physics of Medical Imaging, 3rd
ed., table of CT numbers): air -1000, fat -100, muscle 50, brain 35, fluid 10, dense bone 1000 and
more.
"""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import zoom

from pipeline.phantom.patient import Patient, Pose
from pipeline.phantom.shapes import Field, Points, capsule, ellipsoid

AIR, FAT, MUSCLE, SKIN, BRAIN, FLUID, CORD, DISC = (
    -1000.0,
    -100.0,
    52.0,
    40.0,
    35.0,
    8.0,
    36.0,
    85.0,
)
SKULL, MARROW = 1150.0, 450.0


def render_tissue(
    points: Points, patient: Patient, poses: dict[str, Pose], random: np.random.Generator
) -> Field:
    """Render the soft tissue and the bones around the spine.

    Parameters
    ----------
    points : tuple of ndarray
        Coordinates (x, y, z) in mm, LPS, of shapes (1, 1, nx), (1, ny, 1) and (nz, 1, 1).
    patient : Patient
        Properties of the patient.
    poses : dict of str to Pose
        Pose of each vertebra, from `pipeline.phantom.patient.pose_vertebrae`.
    random : numpy.random.Generator
        Generator of the texture.

    Returns
    -------
    ndarray, shape (nz, ny, nx), float32, HU
    """
    x, y, z = points
    spine_x, spine_y = _spine_at(z, poses)
    away = (x - spine_x, y - spine_y)
    depth = _depth_below_skin(away, z, patient, poses)
    texture = _texture(depth.shape, random)
    # There is fat between the muscles too.
    inside = np.where(texture > 1.15, FAT * 0.7, MUSCLE + 6 * texture)
    hu = np.where(depth > patient.fat_mm + 2, inside, FAT + 5 * texture)
    hu = np.where(depth < 2, SKIN, hu)
    hu = np.where(depth < 0, AIR, hu).astype(np.float32)
    _paint_airway(hu, away, z, patient, poses)
    _paint_skull(hu, (x, y, z), patient, poses["C1"])
    _paint_mandible(hu, (x, y, z), patient, poses)
    return hu


def _paint(hu: Field, distance: Field, value: float, softness: float = 0.6) -> None:
    """Paint a solid over the volume, with a soft edge."""
    cover = np.clip(0.5 - distance / (2 * softness), 0, 1)
    hu += cover * (value - hu)


def _spine_at(z: Field, poses: dict[str, Pose]) -> tuple[Field, Field]:
    """Position (x, y) of the centre line of the vertebral bodies at each height."""
    centres = np.array([pose.centre for pose in reversed(poses.values())])
    x, y = (np.interp(z, centres[:, 2], centres[:, axis]).astype(np.float32) for axis in (0, 1))
    return x, y


def _depth_below_skin(
    away: tuple[Field, Field], z: Field, patient: Patient, poses: dict[str, Pose]
) -> Field:
    """Depth below the skin in mm, for a neck that widens to the head and to the shoulders."""
    head = np.clip((z - poses["C4"].centre[2]) / (36 * patient.size), 0, 1)
    shoulders = np.clip((poses["C6"].centre[2] - z) / (50 * patient.size), 0, 1) ** 2
    half_width = patient.girth * patient.size * (60 + 14 * head) + 95 * shoulders
    half_depth = patient.girth * patient.size * (60 + 26 * head) + 22 * shoulders
    u = away[0] / half_width
    v = (away[1] - patient.size * (4 - 12 * head)) / half_depth
    radius = np.sqrt(u * u + v * v)
    return np.asarray((1 - radius) * np.minimum(half_width, half_depth), np.float32)


def _texture(shape: tuple[int, ...], random: np.random.Generator) -> Field:
    """Smooth noise of unit variance, for the fat planes between muscles."""
    coarse = random.standard_normal([max(2, n // 9) for n in shape]).astype(np.float32)
    smooth = zoom(coarse, [n / m for n, m in zip(shape, coarse.shape, strict=True)], order=1)
    return np.asarray(smooth / smooth.std(), np.float32)


def _paint_airway(
    hu: Field, away: tuple[Field, Field], z: Field, patient: Patient, poses: dict[str, Pose]
) -> None:
    size = patient.size
    larynx = poses["C5"].centre[2]
    below = np.clip((larynx - z) / (30 * size), 0, 1)
    half_width = size * (10 - 2 * below)
    half_depth = size * (5.5 + 2.5 * below)
    middle = -size * (19.5 + 7 * below)
    radius = np.sqrt((away[0] / half_width) ** 2 + ((away[1] - middle) / half_depth) ** 2)
    roof = z - poses["C1"].centre[2] - 9 * size
    _paint(hu, np.maximum((radius - 1) * half_depth, roof), AIR)


def _paint_skull(hu: Field, points: Points, patient: Patient, atlas: Pose) -> None:
    size = patient.size
    x, y, z = (p - np.float32(c) for p, c in zip(points, atlas.centre, strict=True))
    middle = (0.0, 14 * size, 68 * size)
    outer = ellipsoid((x, y, z), middle, (74 * size, 92 * size, 54 * size))
    brain = outer + 6.5 * size
    foramen = np.sqrt(x * x + (y - 12 * size) ** 2) - 17 * size
    shell = np.maximum(np.maximum(outer, -brain), -np.maximum(foramen, z - 32 * size))
    _paint(hu, np.maximum(brain, 14 * size - z), BRAIN)
    _paint(hu, shell, SKULL)
    _paint(hu, shell + 1.6 * size, MARROW)
    clivus = capsule(
        (x, y, z), (0, -9 * size, 17 * size), (0, -34 * size, 46 * size), 6.5 * size, 1.2
    )
    half = (np.abs(x), y, z)
    condyle = ellipsoid(half, (19 * size, 2 * size, 13.5 * size), (6.5 * size, 10 * size, 5 * size))
    for solid in (clivus, condyle):
        _paint(hu, solid, SKULL)
        _paint(hu, solid + 1.2 * size, MARROW)


def _paint_mandible(hu: Field, points: Points, patient: Patient, poses: dict[str, Pose]) -> None:
    """Paint the mandible, a horseshoe at C2 and C3, and the hyoid, a small one at C4."""
    size = patient.size
    x, y, z = points
    for level, half_width, length, height, thickness in (
        ("C2", 40.0, 50.0, 13.0, 5.0),
        ("C4", 17.0, 18.0, 3.0, 2.0),
    ):
        pose = poses[level]
        front = y - pose.centre[1] + size * (30 if level == "C2" else 22)
        u = (x - pose.centre[0]) / (half_width * size)
        v = np.minimum(front, 0) / (length * size)
        ring = np.abs(np.sqrt(u * u + v * v) - 1) * half_width * size - thickness * size
        up = np.abs(z - pose.centre[2] + 6 * size) - height * size
        solid = np.maximum(np.maximum(ring, up), front - (20 if level == "C2" else 4) * size)
        _paint(hu, solid.astype(np.float32), SKULL)
        if level == "C2":
            _paint(hu, solid.astype(np.float32) + 1.8 * size, MARROW)


def paint_canal_and_discs(
    hu: NDArray[np.float32], points: Points, poses: dict[str, Pose], patient: Patient
) -> None:
    """Paint fluid and cord along the spinal canal, and a disc below each body except C1."""
    x, y, z = points
    centres = np.array([pose.centre for pose in reversed(poses.values())])
    canal = np.array(
        [pose.centre + pose.axes[1] * 16.0 * patient.size for pose in reversed(poses.values())]
    )
    middle_x = np.interp(z, canal[:, 2], canal[:, 0]).astype(np.float32)
    middle_y = np.interp(z, canal[:, 2], canal[:, 1]).astype(np.float32)
    size = patient.size
    top = centres[-1, 2] + 14 * size
    for half_width, half_depth, value in ((10.5, 7.0, FLUID), (6.5, 4.0, CORD)):
        radius = np.sqrt(
            ((x - middle_x) / (half_width * size)) ** 2
            + ((y - middle_y) / (half_depth * size)) ** 2
        )
        _paint(hu, np.maximum((radius - 1) * half_depth * size, z - top - 20 * size), value)
    for upper, lower in pairwise(list(poses.values())[1:]):
        centre = (upper.centre + lower.centre) / 2
        away = (x - np.float32(centre[0]), y - np.float32(centre[1]), z - np.float32(centre[2]))
        _paint(hu, ellipsoid(away, (0, 0, 0), (10 * size, 8.5 * size, 4.5 * size)), DISC)
