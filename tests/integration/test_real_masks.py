"""Crops from manually drawn masks of three sources, compared with nibabel and their authors."""

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.cli import main
from pipeline.studies import list_studies
from pipeline.vertebrae.cropping import crop_box, crop_mask
from pipeline.vertebrae.locate import locate_by_mask
from pipeline.vertebrae.nifti import read_mask
from pipeline.vertebrae.overview import make_overview
from storage_schemas.geometry import StackGeometry
from storage_schemas.localizer_card import LOCALIZED_LEVELS
from storage_schemas.store import StudyStore
from tests.studies import slice_dataset

pytestmark = pytest.mark.realdata

VERSE = "luiserrador+IndVertSeg_VerSe/Verse20/dataset-01training/derivatives/sub-gl003"
LUMBAR = "juniorkowal+spine-segmentation/verse_utils/test_images"
TOTALSEGMENTATOR = "wasserth+TotalSegmentator/tests/reference_files"
LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
CERVICAL_BODY_MM, LUMBAR_BODY_MM = 5.0, 8.0
"""Half of the minimum thickness of a vertebral body; processes and arches are thinner."""


def centroids(path: Path, affine: NDArray[np.float64]) -> dict[int, NDArray[np.float64]]:
    """Centroids published by the authors, converted from voxels along the image axes to LPS mm."""
    direction, *rows = json.loads(path.read_text())
    assert tuple(direction["direction"]) == nib.aff2axcodes(affine)
    lps = LPS_FROM_RAS @ affine
    return {row["label"]: lps[:3, :3] @ [row[axis] for axis in "XYZ"] + lps[:3, 3] for row in rows}


def middle_of_body(
    mask: NDArray[np.uint8], geometry: StackGeometry, thick_mm: float
) -> NDArray[np.float64]:
    """The middle of the thickest part of a vertebra, in LPS mm: its arch and processes opened off.

    The authors' centroids are those of the bodies (Sekuboyina et al., VerSe, 2021).
    """
    step = max(1, round(0.6 / geometry.pixel_spacing[0]))
    inside = np.pad(mask[:, ::step, ::step] > 0, 1)
    z, y, x = geometry.spacing
    sampling = (z, y * step, x * step)
    cores, _ = ndimage.label(ndimage.distance_transform_edt(inside, sampling) > thick_mm)
    core = cores == 1 + np.bincount(cores.ravel())[1:].argmax()
    body = inside & (ndimage.distance_transform_edt(~core, sampling) <= thick_mm)
    middle = (np.argwhere(body).mean(0) - 1) * [1, step, step]
    return geometry.to_lps(middle)


def test_crops_of_a_cervical_mask_have_the_published_centroids(
    realdata: Path,
) -> None:
    """The mask has no CT, so bone is painted inside it; positions come from its affine."""
    path = realdata / VERSE / "sub-gl003_dir-ax_seg-vert_msk.nii.gz"
    image = nib.load(path)
    assert nib.aff2axcodes(image.affine) == ("L", "P", "S")  # the canonical axes, backwards
    labels = np.asarray(image.dataobj).transpose(2, 1, 0)
    lps = LPS_FROM_RAS @ image.affine
    geometry = StackGeometry(
        labels.shape,
        tuple(tuple((lps[:3, 3] + z * lps[:3, 2]).tolist()) for z in range(len(labels))),
        (1.0, 0.0, 0.0),
        (0.0, 1.0, 0.0),
        (float(lps[1, 1]), float(lps[0, 0])),
    )
    hu = np.full(labels.shape, 30, np.int16)
    hu[labels > 0] = 400
    levels = (*LOCALIZED_LEVELS, "T1", "T2", "T3", "T4", "T5")
    found = locate_by_mask(
        hu,
        geometry,
        make_overview(hu, geometry, size=16),
        read_mask(path.read_bytes(), path.name),
        "verse",
        levels,
    )
    published = centroids(realdata / VERSE / "sub-gl003_dir-ax_seg-subreg_ctd.json", image.affine)
    assert [vertebra.level for vertebra in found.vertebrae] == list(levels)
    for value, vertebra in enumerate(found.vertebrae, start=1):
        box = crop_box(vertebra.extent, geometry, 8.0)
        mask, grid = crop_mask(vertebra, box), geometry.crop(box)
        np.testing.assert_array_equal(mask, labels[box] == value)
        assert int(mask.sum()) == int((labels == value).sum())
        # C1 is a ring without a body.
        ring = grid.to_lps(np.argwhere(mask).mean(0))
        middle = ring if value == 1 else middle_of_body(mask, grid, CERVICAL_BODY_MM)
        assert np.linalg.norm(middle - published[value]) < 1


def write_lumbar_study(realdata: Path, source: Path, study: str) -> NDArray[np.int16]:
    """Write the oblique lumbar CT as an axial DICOM series; returns HU as (j, i, k)."""
    image = nib.load(realdata / LUMBAR / "sub-verse014_ct.nii.gz")
    lps = LPS_FROM_RAS @ image.affine
    hu = np.asarray(image.dataobj).transpose(1, 0, 2).astype(np.int16)
    (source / study).mkdir(parents=True)
    down, right = lps[:3, 0] / np.linalg.norm(lps[:3, 0]), lps[:3, 2] / np.linalg.norm(lps[:3, 2])
    for j, pixels in enumerate(hu):
        dataset = slice_dataset(study, j, pixels)
        dataset.ImagePositionPatient = (lps[:3, 3] + j * lps[:3, 1]).tolist()
        dataset.ImageOrientationPatient = [*right.tolist(), *down.tolist()]
        dataset.PixelSpacing = [float(np.linalg.norm(lps[:3, axis])) for axis in (0, 2)]
        dataset.save_as(source / study / f"{j}.dcm", enforce_file_format=True)
    return hu


def test_crops_of_an_oblique_study_have_the_published_centroids(
    realdata: Path, tmp_path: Path
) -> None:
    study = "1.2.14"
    write_lumbar_study(realdata, tmp_path / "source", study)
    path = realdata / LUMBAR / "sub-verse014_seg-vert_msk.nii.gz"
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / f"{study}.nii.gz").write_bytes(path.read_bytes())
    given = ["--masks", str(tmp_path / "masks"), "--mask-labels", "verse", "--serial"]
    levels = ["L1", "L2", "L3", "L4", "L5"]
    store_url = str(tmp_path / "s")
    code = main(
        ["run", str(tmp_path / "source"), store_url, "--vertebrae", ",".join(levels), *given]
    )
    assert code == 0
    image = nib.load(path)
    labels = np.asarray(image.dataobj)
    published = centroids(realdata / LUMBAR / "sub-verse014_seg-vb_ctd.json", image.affine)
    store = StudyStore.open(store_url)
    for value, level in enumerate(levels, start=20):
        crop = store.read_crop(study, level)
        assert crop.mask is not None
        assert int(crop.mask.sum()) == int((labels == value).sum())
        assert crop.hu[crop.mask == 1].mean() > 150
        here = crop.geometry.to_lps(np.argwhere(crop.mask).mean(0))
        there = LPS_FROM_RAS @ image.affine @ [*np.argwhere(labels == value).mean(0), 1]
        np.testing.assert_allclose(here, there[:3], atol=0.01)
        # The authors used another mask; voxels are 2 mm wide here.
        middle = middle_of_body(crop.mask, crop.geometry, LUMBAR_BODY_MM)
        assert np.linalg.norm(middle - published[value]) < 2
    assert main(["verify", store_url]) == 0


def as_float64(image: nib.Nifti1Image) -> nib.Nifti1Image:
    return nib.Nifti1Image(np.asarray(image.dataobj).astype(np.float64), image.affine)


def as_nifti2(image: nib.Nifti1Image) -> nib.Nifti1Image:
    return nib.Nifti2Image(np.asarray(image.dataobj), image.affine)


def turned(image: nib.Nifti1Image) -> nib.Nifti1Image:
    return image.as_reoriented(
        nib.orientations.ornt_transform(
            nib.io_orientation(image.affine), nib.orientations.axcodes2ornt("IAR")
        )
    )


def cut_out(image: nib.Nifti1Image) -> nib.Nifti1Image:
    return image.slicer[150:400, 60:330]


def finer(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """Split each voxel near the spine into 2 x 2 x 3, at the same positions."""
    near = image.slicer[200:320, 100:260]
    affine = near.affine.copy()
    affine[:3, :3] = affine[:3, :3] / [2, 2, 3]
    affine[:3, 3] -= affine[:3, :3] @ [0.5, 0.5, 1.0]
    data = np.asarray(near.dataobj).repeat(2, 0).repeat(2, 1).repeat(3, 2)
    return nib.Nifti1Image(data, affine)


@pytest.fixture(scope="module")
def thorax(realdata: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Store of the study with its original mask."""
    store = tmp_path_factory.mktemp("thorax") / "s"
    image = nib.load(realdata / TOTALSEGMENTATOR / "example_seg_dicom.nii.gz")
    assert crop_thorax(realdata, store, image) == 0
    return store


def crop_thorax(realdata: Path, store: Path, image: nib.Nifti1Image) -> int:
    folder = realdata / TOTALSEGMENTATOR / "example_ct_dicom"
    (listing,) = list_studies(str(folder), "scan")
    masks = store.parent / "masks"
    masks.mkdir()
    nib.save(image, masks / f"{listing.study}.nii.gz")
    given = ["--masks", str(masks), "--mask-labels", "totalsegmentator", "--serial"]
    return main(
        ["run", str(folder), str(store), "--layout", "scan", "--vertebrae", "T11,T12", *given]
    )


@pytest.mark.parametrize("stored", [as_float64, as_nifti2, turned, cut_out, finer])
def test_the_crops_do_not_depend_on_how_the_mask_is_stored(
    realdata: Path,
    tmp_path: Path,
    thorax: Path,
    stored: Callable[[nib.Nifti1Image], nib.Nifti1Image],
) -> None:
    image = nib.load(realdata / TOTALSEGMENTATOR / "example_seg_dicom.nii.gz")
    assert crop_thorax(realdata, tmp_path / "s", stored(image)) == 0
    (ours,), (theirs,) = (StudyStore.open(str(s)).records() for s in (tmp_path / "s", thorax))
    assert ours.vertebrae == theirs.vertebrae
    crops = [array for array in theirs.arrays if "overview_levels" not in array.path]
    assert [array for array in ours.arrays if "overview_levels" not in array.path] == crops


@pytest.mark.parametrize(
    ("moved_mm", "kind"),
    [
        ((0, 60, 0), "mask-off-bone"),
        ((60, 0, 0), "mask-off-bone"),
        ((900, 0, 0), "mask-outside-volume"),
    ],
)
def test_a_misplaced_mask_is_refused(
    realdata: Path, tmp_path: Path, moved_mm: tuple[int, int, int], kind: str
) -> None:
    image = nib.load(realdata / TOTALSEGMENTATOR / "example_seg_dicom.nii.gz")
    affine = image.affine.copy()
    affine[:3, 3] += moved_mm
    assert crop_thorax(realdata, tmp_path / "s", nib.Nifti1Image(image.dataobj, affine)) == 1
    (record,) = StudyStore.open(str(tmp_path / "s")).records()
    assert (record.outcome, record.kind) == ("quarantined", kind)
