"""Small CT studies as DICOM files, for tests of processing that do not depend on anatomy.

A study is a column of blocks of 500 HU in soft tissue, one level every four slices, with its mask.
"""

from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

SLICES, ROWS, COLUMNS = 32, 40, 48
SPACING = (2.0, 0.8, 0.5)
LIFE_SIZE = (4.0, 1.6, 1.2)
"""Spacing that makes the blocks as large as vertebrae, for the rules of anatomy."""
LEVELS = 7


def volume(seed: int = 0) -> NDArray[np.int16]:
    """HU, (z, y, x), z ascending; C7 lowest."""
    hu = np.random.default_rng(seed).normal(40, 10, (SLICES, ROWS, COLUMNS)).astype(np.int16)
    hu[labels() > 0] += 460
    return hu


def labels() -> NDArray[np.uint8]:
    mask = np.zeros((SLICES, ROWS, COLUMNS), np.uint8)
    for number in range(LEVELS):
        mask[2 + 4 * number : 5 + 4 * number, 12:24, 16:36] = LEVELS - number
    return mask


def slice_dataset(
    study: str,
    z: int,
    pixels: NDArray[np.int16],
    spacing: tuple[float, float, float] = SPACING,
) -> Dataset:
    """One slice: 16-bit signed, intercept -1024, with instance 1 on top."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = f"{study}.1.{z + 1}"
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = f"{study}.1.{z + 1}"
    dataset.StudyInstanceUID = study
    dataset.SeriesInstanceUID = f"{study}.1"
    dataset.Modality = "CT"
    dataset.PatientID = f"patient of {study}"
    dataset.InstanceNumber = SLICES - z
    dataset.ImagePositionPatient = [-12.0, -16.0, 100.0 + spacing[0] * z]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing = list(spacing[1:])
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelRepresentation = 1
    dataset.RescaleIntercept, dataset.RescaleSlope = -1024, 1
    dataset.PixelData = (pixels + 1024).astype("<i2").tobytes()
    return dataset


def write_study(
    source: Path, study: str, seed: int = 0, spacing: tuple[float, float, float] = SPACING
) -> NDArray[np.int16]:
    """Write ``<source>/<study>/<n>.dcm`` and return the volume."""
    folder = source / study
    folder.mkdir(parents=True)
    hu = volume(seed)
    for z in range(SLICES):
        dataset = slice_dataset(study, z, hu[z], spacing)
        dataset.save_as(folder / f"{dataset.InstanceNumber}.dcm", enforce_file_format=True)
    return hu


def write_mask(masks: Path, study: str, spacing: tuple[float, float, float] = SPACING) -> None:
    """Write ``<masks>/<study>.nii`` in RAS, with y flipped against the image rows."""
    masks.mkdir(parents=True, exist_ok=True)
    z, y, x = spacing
    affine = np.diag([-x, y, z, 1.0])
    affine[:3, 3] = [12.0, 16.0 - y * (ROWS - 1), 100.0]
    data = np.ascontiguousarray(labels()[:, ::-1].transpose(2, 1, 0))
    nib.Nifti1Image(data, affine).to_filename(masks / f"{study}.nii")


def write_cohort(
    root: Path, studies: int = 3, spacing: tuple[float, float, float] = SPACING
) -> tuple[Path, Path]:
    """Write studies 1.2.1, 1.2.2, ... with masks; returns the folders of studies and masks."""
    source, masks = root / "source", root / "masks"
    for number in range(1, studies + 1):
        write_study(source, f"1.2.{number}", number, spacing)
        write_mask(masks, f"1.2.{number}", spacing)
    return source, masks
