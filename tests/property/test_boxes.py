"""Crops do not depend on how the scan and its mask are stored."""

from typing import Any

import nibabel as nib
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.dicom.volume import StudyVolume, read_volume
from pipeline.vertebrae.cropping import crop_box, crop_mask
from pipeline.vertebrae.locate import (
    Localization,
    LocatedVertebra,
    locate_by_mask,
    locate_by_network,
)
from pipeline.vertebrae.nifti import LabelMask, read_mask
from pipeline.vertebrae.onnx_network import Network, NetworkFile
from pipeline.vertebrae.overview import make_overview
from storage_schemas.cubes import shrink_cube
from storage_schemas.geometry import StackGeometry
from storage_schemas.localizer_card import CLASSES
from tests import made_dicom

MARGIN_MM = 6.0
BONE_HU, TISSUE_HU = 476, 40
MIDDLE = np.array([4.0, -9.0, 150.0])
MASK_MM = np.array([0.9, 1.1, 1.3])
Floats = NDArray[np.float64]


def anatomy(points: Floats) -> NDArray[np.bool_]:
    """Whether LPS points (..., 3) are of C4: a body, and a process behind, below and to the left.

    No flip, exchange of axes or shift leaves it as it is.
    """
    x, y, z = np.moveaxis(points - MIDDLE, -1, 0)
    body = (x / 13) ** 2 + (y / 9) ** 2 + (z / 7) ** 2 <= 1
    process = (x - 5) ** 2 + (y - 12) ** 2 + (z + 5) ** 2 <= 6**2
    return np.asarray(body | process)


def make_mask(flips: tuple[bool, bool, bool]) -> LabelMask:
    """The anatomy as a NIfTI mask on a grid of its own."""
    shape = (60, 62, 40)
    affine = np.diag([*MASK_MM, 1.0])
    affine[:3, 3] = np.array([-1, -1, 1]) * MIDDLE - MASK_MM * np.array(shape) / 2
    for axis, flip in enumerate(flips):
        if flip:
            affine[:3, 3] += affine[:3, axis] * (shape[axis] - 1)
            affine[:3, axis] *= -1
    ras = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    image = nib.Nifti1Image(4 * anatomy(ras * [-1, -1, 1]).astype(np.uint8), affine)
    return read_mask(image.to_bytes(), "m.nii")


def turned(a: float, b: float, c: float) -> Floats:
    """Unit vectors to the left, the back and the head of a rotated patient, as rows."""
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return np.round((x @ y @ z).T, 9)


def scan(
    shape: tuple[int, int],
    spacing: tuple[float, float],
    gaps: list[float],
    angles: tuple[float, float, float] = (0.0, 0.0, 0.0),
    shear: float = 0.0,
    stored: tuple[bool, bool, bool, bool] = (False,) * 4,
) -> StudyVolume:
    """The anatomy as a scanner would store it, read by the pipeline.

    `gaps` are those between slices, `shear` is how far each mm towards the head moves the slices to
    the back (a tilted gantry), `stored` whether rows and columns are exchanged, x and y run
    backwards, and the files come from the head down.
    """
    left, back, head = turned(*angles)
    heights = np.cumsum([0.0, *gaps])
    heights -= heights.mean()
    exchanged, flip_x, flip_y, downwards = stored
    objects = []
    for height in heights[:: -1 if downwards else 1]:
        corner = MIDDLE + height * (head + shear * back)
        corner = corner - left * spacing[1] * shape[1] / 2 - back * spacing[0] * shape[0] / 2
        corner = np.round(corner, 6)
        rows, columns = np.indices(shape)
        points = (
            corner + rows[..., None] * spacing[0] * back + columns[..., None] * spacing[1] * left
        )
        words = np.where(anatomy(points), BONE_HU + 1024, TISSUE_HU + 1024).astype(np.uint16)
        row, column, steps = left, back, [*spacing]
        if flip_x:
            words, corner, row = words[:, ::-1], points[0, -1], -row
        if flip_y:
            words, corner = words[::-1], corner + back * spacing[0] * (shape[0] - 1)
            column = -column
        if exchanged:
            words, row, column, steps = words.T, column, row, steps[::-1]
        fields: dict[str, Any] = {
            "ImagePositionPatient": [f"{v:.9f}"[:16] for v in corner],
            "ImageOrientationPatient": [f"{v:.9f}" for v in (*row, *column)],
            "PixelSpacing": steps,
        }
        objects.append(made_dicom.make_object(np.ascontiguousarray(words), **fields))
    return read_volume(made_dicom.name_objects(objects))


def crop(volume: StudyVolume, found: Localization) -> tuple[LocatedVertebra, StackGeometry, Any]:
    (vertebra,) = found.vertebrae
    box = crop_box(vertebra.extent, volume.geometry, MARGIN_MM)
    return vertebra, volume.geometry.crop(box), box


def by_mask(volume: StudyVolume, mask: LabelMask) -> Localization:
    overview = make_overview(volume.hu, volume.geometry, size=16)
    return locate_by_mask(volume.hu, volume.geometry, overview, mask, "rsna", ["C4"])


class Seer:
    """A session that labels all bone in the cube as C4."""

    def run(self, _: object, given: dict[str, NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        (cube,) = given.values()
        output = np.zeros((1, len(CLASSES), *cube.shape[2:]), np.float32)
        output[:, CLASSES.index("C4")] = cube[:, 0] > (BONE_HU + TISSUE_HU) / 2
        output[:, 0] = 1 - output.sum(1)
        return [output]


def by_sight(volume: StudyVolume, size: int = 32) -> Localization:
    overview = make_overview(volume.hu, volume.geometry)
    network = Network(NetworkFile("", ""), size, Seer())
    return locate_by_network(volume.hu, volume.geometry, overview, network, ["C4"])


def check_box(volume: StudyVolume, found: Localization, voxel_mm: float) -> None:
    """Check the extent to a voxel of scan and mask, and the margin to a voxel of the scan."""
    geometry = volume.geometry
    vertebra, _, box = crop(volume, found)
    inside = np.argwhere(anatomy(geometry.to_lps(np.moveaxis(np.indices(geometry.shape), 0, -1))))
    in_plane = zip(geometry.shape[1:], geometry.pixel_spacing, strict=True)
    rulers = [geometry.offsets, *(np.arange(n) * mm for n, mm in in_plane)]
    for axis, (side, extent, ruler) in enumerate(zip(box, vertebra.extent, rulers, strict=True)):
        step = float(np.diff(ruler).max())
        for end, true in ((extent.start, inside.min(0)), (extent.stop - 1, inside.max(0))):
            assert abs(ruler[end] - ruler[true[axis]]) <= voxel_mm / 2 + step
        before = ruler[extent.start] - ruler[side.start]
        after = ruler[side.stop - 1] - ruler[extent.stop - 1]
        for margin, clipped in ((before, side.start == 0), (after, side.stop == len(ruler))):
            assert clipped or MARGIN_MM - (step if axis == 0 else 0) <= margin + 1e-9
            assert margin <= MARGIN_MM + (0 if axis == 0 else step) + 1e-9


flips = st.tuples(*[st.booleans()] * 3)
scans = st.builds(
    scan,
    shape=st.tuples(st.integers(55, 75), st.integers(55, 75)),
    spacing=st.tuples(st.floats(0.7, 1.1), st.floats(0.7, 1.1)).map(
        lambda s: (round(s[0], 3), round(s[1], 3))
    ),
    gaps=st.lists(st.floats(1.0, 4.0).map(lambda g: round(g, 3)), min_size=20, max_size=24),
    angles=st.tuples(*[st.floats(-0.25, 0.25)] * 3),
    shear=st.floats(-0.4, 0.4),
    stored=st.tuples(*[st.booleans()] * 4),
)


@settings(max_examples=25, deadline=None)
@given(volume=scans, mask_flips=flips)
def test_the_box_contains_the_vertebra_and_its_margin_on_any_stack(
    volume: StudyVolume, mask_flips: tuple[bool, bool, bool]
) -> None:
    mask = make_mask(mask_flips)
    found = by_mask(volume, mask)
    check_box(volume, found, float(MASK_MM.max()))
    vertebra, grid, box = crop(volume, found)
    # The voxels of the mask are inside the vertebra, to half a voxel.
    named = grid.to_lps(np.argwhere(crop_mask(vertebra, box)))
    near = [anatomy(named + MASK_MM * d) for d in np.indices((3, 3, 3)).reshape(3, -1).T / 2 - 0.5]
    assert np.any(near, axis=0).all()


@settings(max_examples=15, deadline=None)
@given(volume=scans)
def test_a_vertebra_found_in_the_overview_is_cropped_at_its_position(volume: StudyVolume) -> None:
    _, affine = shrink_cube(*make_overview(volume.hu, volume.geometry), 32)
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    check_box(volume, by_sight(volume), float(sides.max()))


@settings(max_examples=20, deadline=None)
@given(
    stored=st.tuples(*[st.booleans()] * 4),
    mask_flips=flips,
    shear=st.sampled_from([0.0, 0.3]),
)
def test_the_same_scan_stored_in_any_way_has_the_same_crop(
    stored: tuple[bool, bool, bool, bool], mask_flips: tuple[bool, bool, bool], shear: float
) -> None:
    how: dict[str, Any] = {
        "shape": (63, 58),
        "spacing": (0.8, 0.9),
        "gaps": [2.0] * 11 + [3.0] * 11,
    }
    straight, other = scan(**how, shear=shear), scan(**how, shear=shear, stored=stored)
    pairs = [
        (by_mask(other, make_mask(mask_flips)), by_mask(straight, make_mask((False,) * 3))),
        (by_sight(other), by_sight(straight)),
    ]
    for located, truly in pairs:
        ours, grid, box = crop(other, located)
        theirs, true_grid, true_box = crop(straight, truly)
        assert box == true_box
        np.testing.assert_allclose(grid.to_lps([0, 0, 0]), true_grid.to_lps([0, 0, 0]), atol=1e-5)
        np.testing.assert_array_equal(other.hu[box], straight.hu[true_box])
        np.testing.assert_array_equal(crop_mask(ours, box), crop_mask(theirs, true_box))
