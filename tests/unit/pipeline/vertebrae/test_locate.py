"""Read label masks, locate the levels in a volume, and crop them."""

import gzip
from collections.abc import Callable
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.vertebrae.cropping import box_bounds, crop_box, crop_mask
from pipeline.vertebrae.locate import LocatedVertebra, locate_by_mask
from pipeline.vertebrae.maskparts import resample_levels, split_mask
from pipeline.vertebrae.nifti import read_mask
from pipeline.vertebrae.overview import make_overview, overview_geometry
from storage_schemas.errors import StudyError
from storage_schemas.geometry import StackGeometry
from storage_schemas.vertebrae import LEVELS

SHAPE = (12, 40, 48)
BLOCK = np.s_[3:7, 10:22, 20:40]
"""Voxels of the only vertebra."""


def stack(*, tilt: float = 0.0, gaps: tuple[float, ...] = (2.0,) * 11) -> StackGeometry:
    z = np.concatenate([[0.0], np.cumsum(gaps)])
    return StackGeometry(
        SHAPE,
        tuple((-20.0, -30.0 + tilt * float(h), 100.0 + float(h)) for h in z),
        (1.0, 0.0, 0.0),
        (0.0, 1.0, 0.0),
        (0.8, 0.5),
    )


def scan() -> NDArray[np.int16]:
    hu = np.full(SHAPE, 40, np.int16)
    hu[BLOCK] = 500
    return hu


def labels(value: int = 3) -> NDArray[np.uint8]:
    mask = np.zeros(SHAPE, np.uint8)
    mask[BLOCK] = value
    return mask


def nifti(geometry: StackGeometry, mask: NDArray[np.generic], *, flip: str = "") -> bytes:
    """Encode a mask as NIfTI: (i, j, k) = (x, y, z), RAS, with the given axes flipped."""
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ geometry.affine[:, [2, 1, 0, 3]]
    data = mask.transpose(2, 1, 0)
    for axis, name in enumerate("xyz"):
        if name in flip:
            affine[:, 3] += affine[:, axis] * (data.shape[axis] - 1)
            affine[:, axis] *= -1
            data = np.flip(data, axis)
    return nib.Nifti1Image(np.ascontiguousarray(data), affine).to_bytes()


def with_affine(data: bytes, turn: NDArray[np.float64]) -> bytes:
    """Replace the sform, whose rows are at byte 280 of a NIfTI-1 header."""
    rows = np.hstack([turn, np.zeros((3, 1))]).astype("<f4")
    return data[:280] + rows.tobytes() + data[328:]


def without_affine_rows(data: bytes) -> bytes:
    return with_affine(data, np.zeros((3, 3)))


def located(geometry: StackGeometry, data: bytes, hu: NDArray[np.int16]) -> LocatedVertebra:
    (found,) = locate(geometry, data, hu)
    return found


def locate(
    geometry: StackGeometry, data: bytes, hu: NDArray[np.int16], convention: str = "rsna"
) -> list[LocatedVertebra]:
    mask = read_mask(data, "m.nii")
    overview = make_overview(hu, geometry)
    return list(locate_by_mask(hu, geometry, overview, mask, convention, LEVELS).vertebrae)


@pytest.mark.parametrize("flip", ["", "x", "y", "z", "xy", "yz", "xyz"])
@pytest.mark.parametrize("tilt", [0.0, 0.3])
def test_a_mask_is_aligned_by_its_affine_for_any_direction_of_its_axes(
    flip: str, tilt: float
) -> None:
    geometry = stack(tilt=tilt)
    found = located(geometry, nifti(geometry, labels(), flip=flip), scan())
    assert box_bounds(found.extent) == (3, 7, 10, 22, 20, 40)
    assert found.inside.all()
    assert found.mean_hu == 500


def test_a_mask_on_a_finer_grid_covers_the_same_voxels() -> None:
    geometry = stack()
    fine = replace(
        geometry,
        shape=(24, 80, 96),
        positions=tuple(
            (-20.0 - 0.125, -30.0 - 0.2, 100.0 + float(h)) for h in np.arange(24) * 1.0 - 0.5
        ),
        pixel_spacing=(0.4, 0.25),
    )
    mask = labels().repeat(2, 0).repeat(2, 1).repeat(2, 2)
    found = located(geometry, nifti(fine, mask), scan())
    assert box_bounds(found.extent) == (3, 7, 10, 22, 20, 40)
    assert found.inside.all()


def test_a_mask_of_an_uneven_stack_is_placed_by_position() -> None:
    gaps = (2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 5.0, 5.0, 5.0, 5.0, 5.0)
    even = stack()
    found = located(stack(gaps=gaps), nifti(even, labels()), scan())
    assert box_bounds(found.extent) == (3, 7, 10, 22, 20, 40)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int16, np.uint8, np.int32, ">i2"])
def test_masks_of_any_data_type_are_read_with_and_without_gzip(dtype: type | str) -> None:
    geometry = stack()
    data = nifti(geometry, labels().astype(dtype))
    for stored in (data, gzip.compress(data)):
        assert box_bounds(located(geometry, stored, scan()).extent) == (3, 7, 10, 22, 20, 40)


def _nifti_2(image: nib.Nifti1Image) -> nib.Nifti1Image:
    return nib.Nifti2Image(np.asarray(image.dataobj), image.affine)


def _big_endian(image: nib.Nifti1Image) -> nib.Nifti1Image:
    return nib.Nifti1Image(
        np.asarray(image.dataobj), image.affine, nib.Nifti1Header(endianness=">")
    )


def _big_endian_nifti_2(image: nib.Nifti1Image) -> nib.Nifti1Image:
    return nib.Nifti2Image(
        np.asarray(image.dataobj), image.affine, nib.Nifti2Header(endianness=">")
    )


def _one_time_step(image: nib.Nifti1Image) -> nib.Nifti1Image:
    return nib.Nifti1Image(np.asarray(image.dataobj)[..., None, None], image.affine)


def _scaled(image: nib.Nifti1Image) -> nib.Nifti1Image:
    scaled = nib.Nifti1Image(np.asarray(image.dataobj).astype(np.int16) * 2, image.affine)
    scaled.header.set_slope_inter(0.5, 0)
    return scaled


def _qform_alone(image: nib.Nifti1Image) -> nib.Nifti1Image:
    turned = nib.Nifti1Image(np.asarray(image.dataobj), None)
    turned.set_qform(image.affine, code=1)
    return turned


@pytest.mark.parametrize(
    "stored", [_nifti_2, _big_endian, _big_endian_nifti_2, _one_time_step, _scaled, _qform_alone]
)
def test_masks_with_any_header_are_read(
    stored: Callable[[nib.Nifti1Image], nib.Nifti1Image],
) -> None:
    geometry = stack()
    image = nib.Nifti1Image.from_bytes(nifti(geometry, labels()))
    found = located(geometry, stored(image).to_bytes(), scan())
    assert box_bounds(found.extent) == (3, 7, 10, 22, 20, 40)
    assert found.inside.all()


def test_voxels_far_from_the_vertebra_are_removed() -> None:
    geometry = stack()
    mask = labels()
    mask[11, 0, 0] = 3
    found = located(geometry, nifti(geometry, mask), scan())
    assert box_bounds(found.extent) == (3, 7, 10, 22, 20, 40)


def test_a_vertebra_with_several_large_components_keeps_all_of_them() -> None:
    geometry = stack()
    mask = labels()
    mask[3:7, 30:33, 28:32] = 3  # a spinous process whose lamina is outside the scan
    mask[5, 25, 30] = 3  # and a small component between
    found = located(geometry, nifti(geometry, mask), scan())
    assert int(found.inside.sum()) == int((mask == 3).sum())


def test_values_without_a_level_are_background() -> None:
    geometry = stack()
    mask = labels()
    mask[3:7, 10:12, 20:40] = 200
    found = locate(geometry, nifti(geometry, mask), scan())
    assert [vertebra.level for vertebra in found] == ["C3"]
    assert box_bounds(found[0].extent) == (3, 7, 12, 22, 20, 40)


@pytest.mark.parametrize(
    ("convention", "value", "level"),
    [
        ("rsna", 8, "T1"),
        ("verse", 20, "L1"),
        ("totalsegmentator", 33, "T11"),
        ("totalsegmentator", 50, "C1"),
        ("totalsegmentator", 27, "L5"),
    ],
)
def test_each_convention_names_its_labels(convention: str, value: int, level: str) -> None:
    geometry = stack()
    (found,) = locate(geometry, nifti(geometry, labels(value)), scan(), convention)
    assert found.level == level


@pytest.mark.parametrize("flip", ["", "xyz"])
@pytest.mark.parametrize("tilt", [0.0, 0.3])
def test_every_level_of_a_mask_is_resampled_on_the_overview_at_its_position(
    flip: str, tilt: float
) -> None:
    geometry = stack(tilt=tilt)
    mask = labels()
    mask[8:11, 10:22, 20:40] = 19
    hu = scan()
    hu[mask > 0] = 500
    mask[0, 0, 0] = 19  # a stray
    cube, affine = make_overview(hu, geometry)
    read = read_mask(nifti(geometry, mask, flip=flip), "m.nii")
    levels = resample_levels(read, split_mask(read, "rsna"), overview_geometry(affine))
    assert set(np.unique(levels)) == {0, 3, 19}
    # The overview repeats the voxels of this small stack, which shifts edges by half a voxel.
    assert (cube[ndimage.binary_erosion(levels > 0, iterations=3)] == 500).all()
    assert (cube[~ndimage.binary_dilation(levels > 0, iterations=3)] < 500).all()


def test_a_mask_off_the_bone_is_refused() -> None:
    geometry = stack()
    moved = np.roll(labels(), 14, axis=1)
    with pytest.raises(StudyError, match="mask-off-bone"):
        located(geometry, nifti(geometry, moved), scan())


def test_a_mask_outside_the_volume_is_refused() -> None:
    geometry = stack()
    elsewhere = replace(
        geometry, positions=tuple((x + 12.5, y, z) for x, y, z in geometry.positions)
    )
    with pytest.raises(StudyError, match="mask-outside-volume"):
        located(geometry, nifti(elsewhere, labels()), scan())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no nifti",
        gzip.compress(b"no nifti"),
        gzip.compress(b"0" * 4000)[:-20],
        nifti(stack(), labels())[:-100],
        nifti(stack(), labels() + np.float32(0.5)),
        nifti(stack(), labels().astype(np.int16) * 100),
        nifti(stack(), labels() * np.float64(np.nan)),
        nifti(stack(), labels() * np.float64(1e300)),
        nifti(stack(), labels().astype(np.complex64)),
        nifti(stack(), labels().astype([("R", "u1"), ("G", "u1"), ("B", "u1")])),
        nib.Nifti1Image(np.zeros((3, 3, 3, 2), np.uint8), np.eye(4)).to_bytes(),
        with_affine(nifti(stack(), labels()), np.diag([1e30, 1, 1])),
        with_affine(nifti(stack(), labels()), np.array([[1, 0, 1], [0, 1, 0], [1, 0, 1.0001]])),
        with_affine(nifti(stack(), labels()), np.diag([np.nan, 1, 1])),
        nib.Nifti1Image(np.zeros((3, 3), np.uint8), np.eye(4)).to_bytes(),
        without_affine_rows(nifti(stack(), labels())),
        nib.Nifti1Image(np.zeros((3, 3, 3), np.uint8), None).to_bytes(),
    ],
    ids=[
        "empty",
        "text",
        "gzipped text",
        "truncated gzip",
        "truncated",
        "halves",
        "over 255",
        "NaN",
        "far over 255",
        "complex",
        "colours",
        "two time steps",
        "huge voxels",
        "flat affine",
        "NaN in the affine",
        "flat",
        "singular affine",
        "no affine",
    ],
)
def test_a_file_that_is_not_a_label_mask_is_refused_with_its_name(data: bytes) -> None:
    with pytest.raises(StudyError) as caught:
        read_mask(data, "1.2.nii")
    assert (caught.value.kind, caught.value.key) == ("mask-unreadable", "1.2.nii")


def test_a_margin_is_in_mm_on_every_side() -> None:
    box = crop_box(BLOCK, stack(), margin_mm=2.0)
    assert box_bounds(box) == (2, 8, 7, 25, 16, 44)


def test_a_margin_in_an_uneven_stack_follows_the_positions() -> None:
    gaps = (2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 7.0, 1.0, 1.0, 1.0, 1.0)
    assert box_bounds(crop_box(BLOCK, stack(gaps=gaps), margin_mm=8.0))[:2] == (0, 9)


def test_a_crop_is_clipped_to_the_volume() -> None:
    assert box_bounds(crop_box(BLOCK, stack(), margin_mm=99.0)) == (0, 12, 0, 40, 0, 48)


def test_the_mask_of_a_crop_is_on_the_grid_of_the_crop() -> None:
    geometry = stack()
    found = located(geometry, nifti(geometry, labels()), scan())
    box = crop_box(found.extent, geometry, 2.0)
    np.testing.assert_array_equal(crop_mask(found, box), (scan()[box] == 500).astype(np.uint8))
