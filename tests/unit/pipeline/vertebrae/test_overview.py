"""The overview shows the volume at its position in mm."""

import numpy as np
import pytest

from pipeline.vertebrae.overview import make_overview
from storage_schemas.geometry import StackGeometry


def stack(shape: tuple[int, int, int], z: np.ndarray, shear: float = 0.0) -> StackGeometry:
    return StackGeometry(
        shape,
        tuple((5.0, -7.0 + shear * float(h), float(h)) for h in z),
        (1.0, 0.0, 0.0),
        (0.0, 1.0, 0.0),
        (0.5, 0.6),
    )


@pytest.mark.parametrize("shape", [(20, 200, 180), (300, 64, 519), (40, 30, 50)])
@pytest.mark.parametrize("shear", [0.0, 0.3])
def test_a_bright_block_is_at_its_position_in_mm(shape: tuple[int, int, int], shear: float) -> None:
    geometry = stack(shape, np.arange(shape[0]) * 1.5 + 40, shear)
    hu = np.full(shape, -1000, np.int16)
    block = tuple(slice(n // 3, n // 3 + max(4, n // 4)) for n in shape)
    hu[block] = 1000
    cube, affine = make_overview(hu, geometry, size=48)
    centre_in_cube = np.argwhere(cube > 0).mean(0)
    found = affine[:3, :3] @ centre_in_cube + affine[:3, 3]
    true = geometry.to_lps([(side.start + side.stop - 1) / 2 for side in block])
    voxel = np.linalg.norm(affine[:3, :3], axis=0)
    assert np.abs(found - true).max() < voxel.max()


def test_uneven_slices_are_sampled_by_position_not_by_number() -> None:
    z = np.concatenate([np.arange(20) * 1.0, 20 + np.arange(10) * 6.0])
    geometry = stack((30, 40, 40), z)
    hu = np.broadcast_to(z.astype(np.int16)[:, None, None], (30, 40, 40)).copy()
    cube, affine = make_overview(hu, geometry, size=32)
    heights = affine[2, 0] * np.arange(32) + affine[2, 3]
    assert np.abs(cube[:, 0, 0] - heights).max() <= 3.5


def test_the_overview_keeps_mean_and_range() -> None:
    hu = np.random.default_rng(0).integers(-1000, 2000, (16, 256, 256)).astype(np.int16)
    cube, _ = make_overview(hu, stack(hu.shape, np.arange(16) * 1.0), size=16)
    assert cube.dtype == np.int16
    assert abs(float(cube.mean()) - float(hu.mean())) < 1
