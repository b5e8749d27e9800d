"""Sample a synthetic patient: size, posture and bone, and the pose of each vertebra.

Coordinates are LPS in mm, with the origin in the centre of the body of C4.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.phantom.shapes import Points
from pipeline.phantom.vertebrae import LEVELS, PITCH

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Patient:
    """Random properties of one patient.

    Parameters
    ----------
    size : float
        Scale of all lengths; 1 is an average adult.
    curve_degrees : (float, float)
        Inclination of the spine at C1 and at T2 in degrees; the difference is the lordosis.
    yaw_degrees, lean_degrees : float
        Rotation of the head, and lateral inclination of the neck, in degrees.
    density : float
        Scale of trabecular HU, which decrease with age.
    cortex_mm : float
        Thickness of the cortical shell in mm.
    fat_mm : float
        Thickness of the subcutaneous fat in mm.
    girth : float
        Scale of the outline of the neck.
    """

    size: float
    curve_degrees: tuple[float, float]
    yaw_degrees: float
    lean_degrees: float
    density: float
    cortex_mm: float
    fat_mm: float
    girth: float


@dataclass(frozen=True)
class Pose:
    """Position, orientation and scale of one vertebra.

    Parameters
    ----------
    centre : ndarray, shape (3,), float64
        Origin of the vertebra's frame, LPS mm.
    axes : ndarray, shape (3, 3), float64
        Unit vectors along u, v and w as rows, LPS.
    size : float
        Length in the patient per length in the frame.
    """

    centre: Floats
    axes: Floats
    size: float

    def to_frame(self, x: Floats, y: Floats, z: Floats) -> Points:
        """Convert LPS coordinates to the frame of the vertebra.

        Parameters
        ----------
        x, y, z : ndarray
            Coordinates in mm, in shapes that broadcast together.
        """
        away = [np.asarray(p - c, np.float32) for p, c in zip((x, y, z), self.centre, strict=True)]
        dx, dy, dz = away
        turn = (self.axes / self.size).astype(np.float32)
        u, v, w = (dx * a + dy * b + dz * c for a, b, c in turn)
        return u, v, w


def sample_patient(random: np.random.Generator) -> Patient:
    """Sample the properties of one patient."""
    return Patient(
        size=float(np.clip(random.normal(1.0, 0.06), 0.87, 1.14)),
        curve_degrees=(float(random.normal(-9, 4)), float(random.normal(20, 5))),
        yaw_degrees=float(random.normal(0, 4)),
        lean_degrees=float(random.normal(0, 2.5)),
        density=float(np.clip(random.normal(1.0, 0.16), 0.65, 1.4)),
        cortex_mm=float(random.uniform(0.8, 1.3)),
        fat_mm=float(random.uniform(3, 11)),
        girth=float(np.clip(random.normal(1.0, 0.07), 0.85, 1.2)),
    )


def pose_vertebrae(patient: Patient) -> dict[str, Pose]:
    """Place C1 to T2 one below the other along the curve of the patient's spine."""
    lean = np.radians(patient.lean_degrees)
    heights = np.cumsum([0.0] + [PITCH[level] for level in LEVELS[:-1]])
    shares = heights / heights[-1]
    top, bottom = np.radians(patient.curve_degrees)
    poses = {}
    centre = np.zeros(3)
    for level, share in zip(LEVELS, shares, strict=True):
        tilt = top + (bottom - top) * share
        yaw = np.radians(patient.yaw_degrees) * (1 - share)
        axes = _turn(2, yaw) @ _turn(1, lean) @ _turn(0, tilt)
        poses[level] = Pose(centre.copy(), axes.T, patient.size)
        down = -axes[:, 2]
        centre += down * PITCH[level] * patient.size
    middle = poses["C4"].centre.copy()
    return {
        level: Pose(pose.centre - middle, pose.axes, pose.size) for level, pose in poses.items()
    }


def _turn(axis: int, angle: float) -> Floats:
    """Rotation about a coordinate axis."""
    a, b = [i for i in range(3) if i != axis]
    matrix = np.eye(3)
    matrix[a, a] = matrix[b, b] = np.cos(angle)
    matrix[a, b], matrix[b, a] = -np.sin(angle), np.sin(angle)
    return matrix
