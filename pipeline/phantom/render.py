"""Render a patient as a volume of HU, with the labels of vertebrae and the boxes of fractures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from pipeline.phantom.fractures import HAEMATOMA_HU, Fracture
from pipeline.phantom.patient import Patient, Pose, pose_vertebrae
from pipeline.phantom.shapes import Field, Points
from pipeline.phantom.tissue import paint_canal_and_discs, render_tissue
from pipeline.phantom.vertebrae import find_extent, shape_vertebra

CORTICAL_HU = 1180.0
"""Dense cortical shell; 1000 to 1500 in thin-slice CT (Bushberg et al., as in `tissue`)."""
CANCELLOUS_HU = 320.0
"""Trabecular bone of adult cervical vertebrae, some 200 to 400 HU and falling with age (Schreiber
et al., J Bone Joint Surg Am 93(11), 2011, and later cervical series)."""
TRABECULAR_SD_HU = 45.0
"""Standard deviation of the texture of trabecular bone."""
MARGIN_MM = 4.0
"""Margin around an intact vertebra in mm; fragments are displaced by up to 3 mm."""
SEEN_PIXELS = 5.0
"""Minimum loss of bone, in pixels, for a slice to show a fracture."""


@dataclass(frozen=True)
class Grid:
    """Voxel grid of a scan.

    Parameters
    ----------
    x, y, z : ndarray, float64
        Coordinates of columns, rows and slices in mm, LPS; z ascends.
    shear : float
        Shift of y per mm of z in mm, as with a tilted gantry.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    z: NDArray[np.float64]
    shear: float = 0.0

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along (z, y, x)."""
        return len(self.z), len(self.y), len(self.x)

    @property
    def pixel_mm(self) -> float:
        """Distance between columns in mm."""
        return float(self.x[1] - self.x[0])

    def points(self, part: tuple[slice, slice, slice], every: int = 1) -> Points:
        """Return the coordinates of a part of the grid.

        Parameters
        ----------
        part : tuple of slice
            Part of the grid, (z, y, x).
        every : int
            Step between rows and columns.

        Returns
        -------
        tuple of ndarray
            Coordinates (x, y, z) in mm, in shapes that broadcast to (z, y, x).
        """
        z = self.z[part[0]].reshape(-1, 1, 1)
        y = self.y[part[1]][::every].reshape(1, -1, 1) + self.shear * z
        x = self.x[part[2]][::every].reshape(1, 1, -1)
        return x.astype(np.float32), y.astype(np.float32), z.astype(np.float32)


@dataclass(frozen=True)
class Scan:
    """A rendered patient, without the effects of a scanner.

    Parameters
    ----------
    hu : ndarray, shape (z, y, x), float32, HU
        Volume of the patient.
    labels : ndarray, shape (z, y, x), uint8
        1 to 7 for C1 to C7, 8 and 9 for T1 and T2, 0 for background.
    boxes : tuple of (int, str, tuple of int)
        Slice, level, and box (x0, y0, x1, y1) in pixels, ends exclusive, of each visible fracture.
    """

    hu: Field
    labels: NDArray[np.uint8]
    boxes: tuple[tuple[int, str, tuple[int, int, int, int]], ...]


def render_patient(
    patient: Patient,
    fractures: Mapping[str, Sequence[Fracture]],
    grid: Grid,
    random: np.random.Generator,
    *,
    spine: bool = True,
) -> Scan:
    """Render one patient on a grid.

    Parameters
    ----------
    patient : Patient
        Properties of the patient.
    fractures : mapping of str to sequence of Fracture
        Fractures by level.
    grid : Grid
        Voxel grid of the scan.
    random : numpy.random.Generator
        Generator of the textures.
    spine : bool
        Whether to render the vertebrae.

    Returns
    -------
    Scan
        Volume, labels and boxes.
    """
    poses = pose_vertebrae(patient)
    # Soft tissue is smooth, so half the in-plane resolution is enough, in a quarter of the time.
    everything = (slice(None), slice(None), slice(None))
    hu = render_tissue(grid.points(everything, every=2), patient, poses, random)
    hu = hu.repeat(2, 1).repeat(2, 2)[:, : grid.shape[1], : grid.shape[2]]
    hu = np.ascontiguousarray(hu)
    labels = np.zeros(grid.shape, np.uint8)
    boxes: list[tuple[int, str, tuple[int, int, int, int]]] = []
    if spine:
        middle = _part_around(grid, poses["C4"].centre, (40.0, 60.0, 400.0))
        paint_canal_and_discs(hu[middle], grid.points(middle), poses, patient)
        for number, (level, pose) in enumerate(poses.items(), start=1):
            boxes += _paint_vertebra(
                hu, labels, number, level, pose, patient, fractures.get(level, ()), grid, random
            )
    return Scan(hu, labels, tuple(sorted(boxes)))


def _paint_vertebra(
    hu: Field,
    labels: NDArray[np.uint8],
    number: int,
    level: str,
    pose: Pose,
    patient: Patient,
    fractures: Sequence[Fracture],
    grid: Grid,
    random: np.random.Generator,
) -> list[tuple[int, str, tuple[int, int, int, int]]]:
    corners = np.array(list(product(*find_extent(level).T))) @ pose.axes * pose.size
    low, high = corners.min(axis=0) - MARGIN_MM, corners.max(axis=0) + MARGIN_MM
    part = _part_around(grid, pose.centre + (low + high) / 2, (high - low) / 2)
    if any(side.start >= side.stop for side in part):
        return []
    points = pose.to_frame(*(p.astype(np.float64) for p in grid.points(part)))
    intact = points
    for fracture in fractures:
        intact = fracture.displace(intact)
    distance = shape_vertebra(level, intact) * np.float32(patient.size)
    edge = np.float32(0.5 * grid.pixel_mm)
    cover = np.clip(0.5 - distance / (2 * edge), 0, 1)
    shell = np.clip(0.5 + (distance + patient.cortex_mm) / (2 * edge), 0, 1)
    grain = random.standard_normal(distance.shape, np.float32) * TRABECULAR_SD_HU
    marrow = CANCELLOUS_HU * patient.density + grain
    bone = marrow + shell * (CORTICAL_HU * (0.6 + 0.4 * patient.density) - marrow)
    gap = np.zeros_like(distance)
    for fracture in fractures:
        gap = np.maximum(gap, fracture.coverage(points, grid.pixel_mm, patient.size))
    bone = bone + gap * (HAEMATOMA_HU - bone)
    hu[part] += cover * (bone - hu[part])
    free = (cover >= 0.5) & (labels[part] == 0)
    labels[part][free] = number
    return _boxes(gap * cover, part, level) if fractures else []


def _boxes(
    lost: Field, part: tuple[slice, slice, slice], level: str
) -> list[tuple[int, str, tuple[int, int, int, int]]]:
    """Boxes around the lost bone, for the slices that show at least `SEEN_PIXELS` of it."""
    boxes = []
    margin = 3
    for z, image in enumerate(lost):
        if image.sum() < SEEN_PIXELS:
            continue
        rows, columns = np.nonzero(image > 0.25)
        if not len(rows):
            continue
        y0, x0 = part[1].start, part[2].start
        corner = (x0 + int(columns.min()) - margin, y0 + int(rows.min()) - margin)
        end = (x0 + int(columns.max()) + 1 + margin, y0 + int(rows.max()) + 1 + margin)
        boxes.append((part[0].start + z, level, (max(0, corner[0]), max(0, corner[1]), *end)))
    return boxes


def _part_around(
    grid: Grid, centre: NDArray[np.float64], reach: Sequence[float] | NDArray[np.float64]
) -> tuple[slice, slice, slice]:
    """Part of the grid within a distance (x, y, z) of a point."""
    z = _range(grid.z, centre[2], reach[2])
    shift = grid.shear * float(centre[2])
    y = _range(grid.y, centre[1] - shift, reach[1] + abs(grid.shear) * reach[2])
    return z, y, _range(grid.x, centre[0], reach[0])


def _range(values: NDArray[np.float64], middle: float, reach: float) -> slice:
    start, stop = np.searchsorted(values, (middle - reach, middle + reach))
    return slice(int(start), int(stop))
