"""The real command on real DICOM: what is stored equals what independent readers see."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.cli import main
from pipeline.dicom.volume import read_volume
from pipeline.studies import list_studies
from storage_schemas.canonical import sha256_voxels
from storage_schemas.store import StudyStore

pytestmark = pytest.mark.realdata

TOTALSEGMENTATOR = "wasserth+TotalSegmentator/tests/reference_files/example_ct_dicom"
SERIES = [
    TOTALSEGMENTATOR,
    "neurolabusc+dcm_qa_ct/In/GE",
    "theibsi+data_sets/ibsi_validation/dicom/STS_008/CT/image",
    "theibsi+data_sets/ibsi_validation/dicom/STS_019/CT/image",
    "theibsi+data_sets/ibsi_2_digital_phantom/dicom/orientation",
    "Slicer+Slicer/Testing/Data/Input/CTHeadAxialDicom",
]


def expected_of(realdata: Path, series: str) -> dict[str, Any]:
    rows = json.loads((realdata / "expected.json").read_text())["series"]
    (row,) = [row for row in rows if row["path"] == series]
    return dict(row)


@pytest.mark.parametrize("series", SERIES)
def test_a_real_series_is_stored_as_independent_readers_see_it(
    realdata: Path, tmp_path: Path, series: str
) -> None:
    expected = expected_of(realdata, series)
    folder = realdata / series
    code = main(["run", str(folder), str(tmp_path / "s"), "--layout", "scan", "--serial"])
    assert code == 0

    store = StudyStore.open(str(tmp_path / "s"))
    (record,) = store.records()
    volume = record.volume
    assert volume is not None
    geometry = volume.geometry
    assert list(geometry.shape) == expected["shape"]
    assert geometry.tilt_degrees == pytest.approx(expected["tilt_deg"], abs=0.05)
    np.testing.assert_allclose(geometry.positions[0], expected["first_ipp"], atol=1e-6)
    np.testing.assert_allclose(geometry.positions[-1], expected["last_ipp"], atol=1e-6)
    np.testing.assert_allclose(geometry.pixel_spacing, expected["pixel_spacing_row_col"])
    gaps = np.diff(geometry.offsets)
    for gap in gaps:
        assert np.abs(np.subtract(expected["gap_along_normal"], gap)).min() < 0.01
    assert volume.slices[0].key.endswith(expected["first_file"])
    assert volume.slices[-1].key.endswith(expected["last_file"])
    assert {entry.transfer_syntax for entry in record.inputs} == set(expected["ts"])

    objects = [(path.name, path.read_bytes()) for path in folder.iterdir()]
    unmasked = read_volume(objects, mask_padding=False).hu.astype("<i4")
    assert hashlib.sha256(unmasked.tobytes()).hexdigest() == expected["sha256_hu_i32"]
    assert volume.hu_sha256 == sha256_voxels(read_volume(objects).hu)
    assert store.check(record) == []


def test_real_vertebrae_are_cropped_by_their_real_mask(realdata: Path, tmp_path: Path) -> None:
    folder = realdata / TOTALSEGMENTATOR
    (listing,) = list_studies(str(folder), "scan")
    masks = tmp_path / "masks"
    masks.mkdir()
    shutil.copy(folder.parent / "example_seg_dicom.nii.gz", masks / f"{listing.study}.nii.gz")
    arguments = ["--layout", "scan", "--masks", str(masks), "--mask-labels", "totalsegmentator"]
    store_url = str(tmp_path / "s")
    code = main(
        ["run", str(folder), store_url, "--vertebrae", "T11,T12", "--workers", "1", *arguments]
    )
    assert code == 0

    store = StudyStore.open(store_url)
    (record,) = store.records()
    assert [vertebra.level for vertebra in record.vertebrae] == ["T11", "T12"]
    volume = read_volume((path.name, path.read_bytes()) for path in folder.iterdir())
    for vertebra in record.vertebrae:
        crop = store.read_crop(listing.study, vertebra.level)
        assert crop.mask is not None
        assert crop.hu[crop.mask == 1].mean() > 150
        assert vertebra.mean_hu == pytest.approx(float(crop.hu[crop.mask == 1].mean()), abs=0.01)
        z0, z1, y0, y1, x0, x1 = vertebra.box or ()
        np.testing.assert_array_equal(crop.hu, volume.hu[z0:z1, y0:y1, x0:x1])
        np.testing.assert_allclose(
            crop.geometry.to_lps([0, 0, 0]), volume.geometry.to_lps([z0, y0, x0])
        )
    # T12 lies below T11, and z ascends.
    eleventh, twelfth = (store.read_crop(listing.study, level) for level in ("T11", "T12"))
    heights = [
        crop.geometry.to_lps(np.argwhere(crop.mask).mean(0))[2] for crop in (eleventh, twelfth)
    ]
    assert heights[0] > heights[1]
    assert main(["verify", store_url]) == 0


def test_every_labelled_voxel_of_the_real_mask_is_in_its_crop(
    realdata: Path, tmp_path: Path
) -> None:
    """Counted with nibabel alone: the mask's grid is the series' own, so no voxel may be lost."""
    import nibabel as nib

    folder = realdata / TOTALSEGMENTATOR
    (listing,) = list_studies(str(folder), "scan")
    source = folder.parent / "example_seg_dicom.nii.gz"
    masks = tmp_path / "masks"
    masks.mkdir()
    shutil.copy(source, masks / f"{listing.study}.nii.gz")
    labels = np.asarray(nib.load(source).dataobj)
    main(
        [
            "run",
            str(folder),
            str(tmp_path / "s"),
            "--layout",
            "scan",
            "--serial",
            "--vertebrae",
            "T11,T12",
            "--masks",
            str(masks),
            "--mask-labels",
            "totalsegmentator",
        ]
    )
    store = StudyStore.open(str(tmp_path / "s"))
    for level, value in (("T11", 33), ("T12", 32)):
        crop = store.read_crop(listing.study, level)
        assert crop.mask is not None
        assert int(crop.mask.sum()) == int((labels == value).sum())
