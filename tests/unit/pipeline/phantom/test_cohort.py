"""Phantom cohorts have the layout, the encodings and the prevalence of the competition."""

import csv
from pathlib import Path

import imagecodecs
import nibabel as nib
import numpy as np
import pydicom
import pytest

from pipeline.dicom.volume import read_volume
from pipeline.phantom import FAULTS, make_cohort
from pipeline.phantom.cohort import FRACTURED_LEVELS, FRACTURES_BY_LEVEL, _sample_levels
from pipeline.phantom.fractures import sample_fractures
from pipeline.phantom.patient import pose_vertebrae, sample_patient
from pipeline.phantom.render import Grid, render_patient
from pipeline.phantom.vertebrae import LEVELS
from storage_schemas.errors import UsageError
from storage_schemas.targets import COMPETITION


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as stream:
        return list(csv.DictReader(stream))


def files_of(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phantom") / "cohort"
    make_cohort(out, studies=10, seed=3, size=96, slices=40, workers=2)
    return out


def test_the_layout_is_the_competitions(cohort: Path) -> None:
    studies = [row["StudyInstanceUID"] for row in rows(cohort / "train.csv")]
    assert sorted(path.name for path in (cohort / "train_images").iterdir()) == sorted(studies)
    for study in studies:
        names = sorted(int(p.stem) for p in (cohort / "train_images" / study).glob("*.dcm"))
        assert names == list(range(1, len(names) + 1))
        assert (cohort / "segmentations" / f"{study}.nii").is_file()
    submission = rows(cohort / "sample_submission.csv")
    assert len(submission) == 8 * len(studies)
    assert list(submission[0]) == ["row_id", "fractured"]


def test_the_same_seed_gives_the_same_bytes_on_any_number_of_workers(tmp_path: Path) -> None:
    for name, workers in (("a", 1), ("b", 2)):
        make_cohort(tmp_path / name, studies=2, seed=5, size=48, slices=16, workers=workers)
    make_cohort(tmp_path / "c", studies=2, seed=6, size=48, slices=16, workers=1)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    assert set(files_of(tmp_path / "a")) != set(files_of(tmp_path / "c"))


def test_patient_overall_is_the_greatest_of_the_levels(cohort: Path) -> None:
    labels = rows(cohort / "train.csv")
    assert {row["patient_overall"] for row in labels} == {"0", "1"}
    for row in labels:
        assert row["patient_overall"] == max(row[level] for level in COMPETITION.levels)


def test_prevalence_is_that_of_the_competition() -> None:
    random = np.random.default_rng(0)
    sampled = [_sample_levels(random) for _ in range(6000)]
    total = sum(FRACTURED_LEVELS)
    fractured = np.mean([bool(levels) for levels in sampled])
    assert fractured == pytest.approx(1 - FRACTURED_LEVELS[0] / total, abs=0.03)
    for level, count in zip(COMPETITION.levels, FRACTURES_BY_LEVEL, strict=True):
        share = np.mean([level in levels for levels in sampled])
        assert share == pytest.approx(count / total, abs=0.03)


def test_sites_differ_in_encoding_and_one_study_is_not_square(cohort: Path) -> None:
    headers = [
        pydicom.dcmread(folder / "1.dcm", stop_before_pixels=True)
        for folder in (cohort / "train_images").iterdir()
    ]
    assert {str(h.file_meta.TransferSyntaxUID) for h in headers} == {
        "1.2.840.10008.1.2",
        "1.2.840.10008.1.2.1",
        "1.2.840.10008.1.2.4.70",
    }
    assert {(h.BitsStored, h.PixelRepresentation) for h in headers} == {(16, 1), (12, 0)}
    assert sorted({(h.Rows, h.Columns) for h in headers}) == [(96, 96), (96, 103)]
    assert any(h["WindowCenter"].VM > 1 for h in headers)
    assert any("PixelPaddingValue" in h for h in headers)


def test_a_tenth_of_the_studies_is_numbered_from_feet_to_head(cohort: Path) -> None:
    upwards = 0
    for folder in (cohort / "train_images").iterdir():
        first, second = (pydicom.dcmread(folder / f"{n}.dcm") for n in (1, 2))
        upwards += second.ImagePositionPatient[2] > first.ImagePositionPatient[2]
    assert upwards == 1


def test_two_decoders_agree_on_jpeg_lossless_slices(cohort: Path) -> None:
    (study, *_) = [
        row["StudyInstanceUID"]
        for row in rows(cohort / "phantom.csv")
        if row["transfer_syntax"].endswith(".70")
    ]
    dataset = pydicom.dcmread(cohort / "train_images" / study / "7.dcm")
    dataset.pixel_array_options(decoding_plugin="gdcm")
    frame = next(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1))
    np.testing.assert_array_equal(dataset.pixel_array, imagecodecs.jpeg_decode(frame))
    assert dataset.pixel_array.max() > 1500


def test_masks_are_on_the_bone_by_their_affine_alone(cohort: Path) -> None:
    """nibabel converts every labelled voxel to patient coordinates, where the CT has bone."""
    for study in [row["StudyInstanceUID"] for row in rows(cohort / "phantom.csv")][:5]:
        folder = cohort / "train_images" / study
        volume = read_volume((path.name, path.read_bytes()) for path in folder.iterdir())
        image = nib.load(cohort / "segmentations" / f"{study}.nii")
        assert nib.aff2axcodes(image.affine) == ("L", "A", "S")
        labels = np.asarray(image.dataobj)
        assert set(np.unique(labels)) == set(range(10))
        points = nib.affines.apply_affine(image.affine, np.argwhere((labels > 0) & (labels < 8)))
        index = volume.geometry.to_index(points * [-1, -1, 1])
        np.testing.assert_allclose(index, np.rint(index), atol=1e-3)
        z, y, x = np.rint(index).astype(int).T
        assert volume.hu[z, y, x].mean() > 350
        heights = [points_of(image, labels == level)[:, 2].mean() for level in range(1, 10)]
        assert heights == sorted(heights, reverse=True)


def points_of(image: nib.Nifti1Image, where: np.ndarray) -> np.ndarray:
    return np.asarray(nib.affines.apply_affine(image.affine, np.argwhere(where)))


def test_boxes_contain_lost_bone() -> None:
    """A patient is rendered without and with a fracture, and the volumes differ in the boxes."""
    random = np.random.default_rng(11)
    patient = sample_patient(random)
    fractures = {"C5": sample_fractures("C5", random)}
    axis = (np.arange(192) - 96) * 0.75
    grid = Grid(axis, axis + 10, np.linspace(-45, 10, 40))
    intact = render_patient(patient, {}, grid, np.random.default_rng(1))
    fractured = render_patient(patient, fractures, grid, np.random.default_rng(1))
    assert not intact.boxes
    assert fractured.boxes
    for z, level, (x0, y0, x1, y1) in fractured.boxes:
        assert level == "C5"
        lost = intact.hu[z, y0:y1, x0:x1] - fractured.hu[z, y0:y1, x0:x1]
        assert lost.max() > 250
    slices = {z for z, _, _ in fractured.boxes}
    of_level = np.unique(np.nonzero(fractured.labels == 5)[0])
    assert 0.1 < len(slices) / len(of_level) < 0.8


@pytest.mark.parametrize("level", COMPETITION.levels)
def test_a_fracture_is_visible_in_about_a_third_of_the_slices_of_its_vertebra(level: str) -> None:
    shares = []
    for seed in range(8):
        random = np.random.default_rng(seed)
        patient = sample_patient(random)
        middle = pose_vertebrae(patient)[level].centre
        axis = (np.arange(144) - 72) * 0.8
        grid = Grid(axis, axis + middle[1] + 15, np.arange(middle[2] - 30, middle[2] + 36, 1.5))
        scan = render_patient(patient, {level: sample_fractures(level, random)}, grid, random)
        seen = {z for z, _, _ in scan.boxes}
        number = LEVELS.index(level) + 1
        shares.append(len(seen) / len(np.unique(np.nonzero(scan.labels == number)[0])))
    assert 0.15 < np.mean(shares) < 0.6
    assert min(shares) > 0


def test_every_vertebra_is_rendered_in_order_and_with_a_plausible_volume(cohort: Path) -> None:
    random = np.random.default_rng(2)
    patient = sample_patient(random)
    axis = (np.arange(160) - 80) * 0.9
    grid = Grid(axis, axis + 15, np.arange(-110, 85, 1.5))
    labels = render_patient(patient, {}, grid, random).labels
    spans = [np.nonzero(labels == number)[0] for number in range(1, 8)]
    for upper, lower in zip(spans[:-2], spans[2:], strict=True):
        assert np.median(upper) > np.median(lower) + 10
    mm3 = [float((labels == number).sum()) * 0.9 * 0.9 * 1.5 for number in range(1, 8)]
    assert min(mm3) > 4000
    assert max(mm3) < 40000


def test_a_folder_that_is_not_empty_is_refused_and_unchanged(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(UsageError, match="not empty"):
        make_cohort(tmp_path, studies=1)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_faults_csv_lists_each_fault(tmp_path: Path) -> None:
    make_cohort(tmp_path / "c", studies=1, size=64, slices=24, faults=True, workers=2)
    listed = rows(tmp_path / "c" / "faults.csv")
    assert [row["fault"] for row in listed] == [fault.name for fault in FAULTS]
    assert len({row["StudyInstanceUID"] for row in listed}) == len(FAULTS)
