"""Downsampling of a study's overview to the input size of a localizer, in pipeline and training.

Not here: making an overview from a volume (`pipeline.vertebrae.overview`), and the contract of a
localizer (`storage_schemas.localizer_card`).
"""

import numpy as np
from numpy.typing import NDArray


def shrink_cube(
    cube: NDArray[np.int16], affine: NDArray[np.float64], size: int
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Average a cube down by a whole factor.

    Parameters
    ----------
    cube : ndarray, shape (n, n, n), int16, HU
        Overview of a study.
    affine : ndarray, shape (4, 4), float64
        Matrix from homogeneous (z, y, x) indices of the cube to LPS (x, y, z) in mm.
    size : int
        Number of voxels along each side of the smaller cube; it divides n.

    Returns
    -------
    cube : ndarray, shape (size, size, size), float32, HU
        Mean of each block of voxels, not rounded.
    affine : ndarray, shape (4, 4), float64
        Matrix from indices of the smaller cube to LPS in mm.
    """
    factor = len(cube) // size
    blocks = cube.reshape(size, factor, size, factor, size, factor)
    larger = affine.copy()
    larger[:3, :3] *= factor
    larger[:3, 3] += affine[:3, :3].sum(1) * (factor - 1) / 2
    return blocks.mean((1, 3, 5), dtype=np.float32), larger
