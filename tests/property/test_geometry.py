import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage_schemas.geometry import StackGeometry


@st.composite
def geometries(draw: st.DrawFn) -> StackGeometry:
    """Stacks that are tilted, rotated a little and uneven, as scanners make them."""
    angles = [draw(st.floats(-0.4, 0.4)) for _ in range(3)]
    rotation = np.eye(3)
    for axis, angle in enumerate(angles):
        turn = np.eye(3)
        a, b = [i for i in range(3) if i != axis]
        turn[[a, a, b, b], [a, b, a, b]] = (
            np.cos(angle),
            -np.sin(angle),
            np.sin(angle),
            np.cos(angle),
        )
        rotation = rotation @ turn
    gaps = draw(st.lists(st.floats(0.3, 7.0), min_size=1, max_size=8))
    way = rotation[:, 2] + draw(st.floats(-0.4, 0.4)) * rotation[:, 1]
    start = np.array([draw(st.floats(-300, 300)) for _ in range(3)])
    positions = start + np.concatenate([[0.0], np.cumsum(gaps)])[:, None] * way
    return StackGeometry(
        shape=(len(positions), draw(st.integers(2, 600)), draw(st.integers(2, 600))),
        positions=tuple(tuple(map(float, p)) for p in positions),
        row_direction=tuple(map(float, rotation[:, 0])),
        column_direction=tuple(map(float, rotation[:, 1])),
        pixel_spacing=(draw(st.floats(0.2, 2.0)), draw(st.floats(0.2, 2.0))),
        classes=("uneven", "tilted"),
    )


@given(geometries(), st.data())
def test_indices_and_points_map_back_and_forth(
    geometry: StackGeometry, data: st.DataObject
) -> None:
    index = [data.draw(st.floats(-5, n + 5)) for n in geometry.shape]
    np.testing.assert_allclose(geometry.to_index(geometry.to_lps(index)), index, atol=1e-6)


@given(geometries())
def test_each_slice_starts_at_its_exact_position(geometry: StackGeometry) -> None:
    starts = geometry.to_lps([(z, 0, 0) for z in range(geometry.shape[0])])
    np.testing.assert_array_equal(starts, geometry.positions)


@given(geometries(), st.data())
def test_a_crop_keeps_every_voxel_where_it_was(
    geometry: StackGeometry, data: st.DataObject
) -> None:
    starts = [data.draw(st.integers(0, n - 1)) for n in geometry.shape]
    box = tuple(
        slice(a, data.draw(st.integers(a + 1, n)))
        for a, n in zip(starts, geometry.shape, strict=True)
    )
    crop = geometry.crop((box[0], box[1], box[2]))
    last = np.subtract(crop.shape, 1)
    np.testing.assert_allclose(crop.to_lps(last), geometry.to_lps(np.add(starts, last)), atol=1e-9)


@given(geometries())
def test_geometry_survives_json_exactly(geometry: StackGeometry) -> None:
    assert StackGeometry.from_json(geometry.to_json()) == geometry


def test_the_affine_of_an_even_sheared_stack_is_exact() -> None:
    geometry = StackGeometry(
        shape=(3, 4, 5),
        positions=((1.0, 2.0, 3.0), (1.0, 2.5, 5.0), (1.0, 3.0, 7.0)),
        row_direction=(1.0, 0.0, 0.0),
        column_direction=(0.0, 1.0, 0.0),
        pixel_spacing=(0.5, 0.25),
        classes=("tilted",),
    )
    index = (2.0, 3.0, 4.0)
    point = geometry.affine @ (*index, 1.0)
    np.testing.assert_allclose(point[:3], geometry.to_lps(index))
    assert geometry.spacing == (2.0, 0.5, 0.25)
    assert geometry.tilt_degrees == pytest.approx(np.degrees(np.arctan(0.25)))
