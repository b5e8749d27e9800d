import numpy as np
import pytest

from storage_schemas.cubes import shrink_cube


def test_a_smaller_cube_holds_the_mean_of_each_block_and_is_not_rounded() -> None:
    hu = np.zeros((4, 4, 4), np.int16)
    hu[:2, :2, :2] = 300
    hu[0, 0, 0] = 1101
    found, _ = shrink_cube(hu, np.eye(4), 2)
    assert found.dtype == np.float32
    assert found[0, 0, 0] == (7 * 300 + 1101) / 8
    assert not found[1:].any()


@pytest.mark.parametrize("size", [8, 4, 2])
def test_a_smaller_cube_lies_where_the_larger_one_lies(size: int) -> None:
    affine = np.array([[0, 0.1, 2.0, 5], [0.2, 3.0, 0, -7], [4.0, 0, 0, 40], [0, 0, 0, 1.0]])
    _, found = shrink_cube(np.zeros((8, 8, 8), np.int16), affine, size)
    for corner in (-0.5, 7.5):  # outer edges of the first and the last voxels
        edge = (corner + 0.5) * size / 8 - 0.5
        np.testing.assert_allclose(
            found @ [edge, edge, edge, 1], affine @ [corner, corner, corner, 1]
        )
