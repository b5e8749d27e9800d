"""Simulate a scanner: noise, reconstruction kernel, quantisation, and DICOM files.

The four sites differ in pixel spacing, kernel, noise, signedness, padding and encoding.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLosslessSV1,
)
from scipy.ndimage import gaussian_filter1d

from pipeline.phantom.render import Grid

INTERCEPT = -1024


@dataclass(frozen=True)
class Site:
    """One scanner and its protocol.

    Parameters
    ----------
    name : str
        Name of the site.
    manufacturer, model, kernel : str
        Values of Manufacturer, ManufacturerModelName and ConvolutionKernel.
    syntax : str
        Transfer syntax UID.
    signed : bool
        Whether stored values are 16-bit signed; otherwise they are 12-bit unsigned.
    fov_mm : (float, float)
        Range of the field of view in mm.
    noise_hu : (float, float)
        Range of the standard deviation of the noise in HU.
    blur : float
        Standard deviation of the kernel in pixels; a negative value sharpens.
    padding : int or None
        Stored value outside the circular field of view; None without padding.
    window_centers : tuple of int
        Values of WindowCenter.
    """

    name: str
    manufacturer: str
    model: str
    kernel: str
    syntax: str
    signed: bool
    fov_mm: tuple[float, float]
    noise_hu: tuple[float, float]
    blur: float
    padding: int | None
    window_centers: tuple[int, ...]


SITES = (
    Site("north", "Phantom Medical", "Helix 64", "BONEPLUS", ImplicitVRLittleEndian, True,
         (145, 165), (8, 18), -0.5, -2000, (500,)),
    Site("south", "Phantom Medical", "Helix 128", "B70f", ExplicitVRLittleEndian, False,
         (140, 155), (8, 16), 0.45, None, (450, 40)),
    Site("east", "Synthetic Imaging", "Aurora", "YC", JPEGLosslessSV1, False,
         (145, 165), (10, 22), 0.55, None, (500, 50)),
    Site("west", "Synthetic Imaging", "Aurora S", "FC30", JPEGLosslessSV1, False,
         (150, 170), (12, 24), -0.3, None, (700,)),
)  # fmt: skip


@dataclass(frozen=True)
class Series:
    """Identifiers of one series.

    Parameters
    ----------
    study, series : str
        StudyInstanceUID and SeriesInstanceUID.
    patient : str
        PatientID.
    reversed_numbers : bool
        Whether InstanceNumber ascends from feet to head instead of from head to feet.
    """

    study: str
    series: str
    patient: str
    reversed_numbers: bool

    def number(self, z: int, slices: int) -> int:
        """Number of slice `z`, from 1, for the file name and InstanceNumber."""
        return z + 1 if self.reversed_numbers else slices - z


def acquire(
    hu: NDArray[np.float32], grid: Grid, site: Site, random: np.random.Generator
) -> NDArray[np.int16]:
    """Convert HU to the stored values of a site: add noise, apply the kernel, quantise.

    Parameters
    ----------
    hu : ndarray, shape (z, y, x), float32, HU
        Rendered volume.
    grid : Grid
        Voxel grid of the volume.
    site : Site
        Site whose scanner is simulated.
    random : numpy.random.Generator
        Generator of the noise.

    Returns
    -------
    ndarray, shape (z, y, x), int16
        Stored values before the rescale.
    """
    noisy = hu + random.standard_normal(hu.shape, np.float32) * random.uniform(*site.noise_hu)
    width = abs(site.blur)
    blurred = gaussian_filter1d(
        gaussian_filter1d(noisy, width, 1, truncate=3), width, 2, truncate=3
    )
    image = blurred if site.blur > 0 else noisy + 0.6 * (noisy - blurred)
    low, high = (-1024, 3071 + 1024) if site.signed else (-1024, 3071)
    stored = np.rint(image).clip(low, high) - INTERCEPT
    if site.padding is not None:
        radius = np.hypot(
            *np.meshgrid(grid.y - grid.y.mean(), grid.x - grid.x.mean(), indexing="ij")
        )
        stored[:, radius > grid.x[-1] - grid.x.mean()] = site.padding
    return np.asarray(stored, np.int16)


def make_slice(
    pixels: NDArray[np.int16], z: int, grid: Grid, site: Site, series: Series
) -> Dataset:
    """Make the DICOM data set of one slice.

    Parameters
    ----------
    pixels : ndarray, shape (y, x), int16
        Stored values of the slice.
    z : int
        Index of the slice in the grid.
    grid : Grid
        Voxel grid of the scan.
    site : Site
        Site that the header describes.
    series : Series
        Identifiers of the series.
    """
    number = series.number(z, grid.shape[0])
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(site.syntax)
    dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = UID(f"{series.series}.{number}")
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = f"{series.series}.{number}"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.Modality = "CT"
    dataset.Manufacturer = site.manufacturer
    dataset.ManufacturerModelName = site.model
    dataset.ConvolutionKernel = site.kernel
    dataset.BodyPartExamined = "CSPINE"
    dataset.PatientID = series.patient
    dataset.PatientName = "Phantom^Synthetic"
    dataset.StudyInstanceUID = series.study
    dataset.SeriesInstanceUID = series.series
    dataset.InstanceNumber = number
    step = float(grid.z[1] - grid.z[0])
    position = (grid.x[0], grid.y[0] + grid.shear * grid.z[z], grid.z[z])
    dataset.ImagePositionPatient = [_decimal(p) for p in position]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.SliceThickness = _decimal(step)
    dataset.SliceLocation = _decimal(grid.z[z])
    dataset.PixelSpacing = [_decimal(grid.y[1] - grid.y[0]), _decimal(grid.pixel_mm)]
    dataset.WindowCenter = list(site.window_centers)
    dataset.WindowWidth = [1800, 400][: len(site.window_centers)]
    dataset.RescaleIntercept, dataset.RescaleSlope = INTERCEPT, 1
    dataset.RescaleType = "HU"
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated = 16
    dataset.BitsStored = 16 if site.signed else 12
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(site.signed)
    if site.padding is not None:
        dataset.PixelPaddingValue = site.padding
    _set_pixels(dataset, pixels, site)
    return dataset


def save_slice(dataset: Dataset, path: Path) -> None:
    """Save a slice as a DICOM file (PS3.10)."""
    dataset.save_as(path, enforce_file_format=True)


def _set_pixels(dataset: Dataset, pixels: NDArray[np.int16], site: Site) -> None:
    if site.syntax != JPEGLosslessSV1:
        dataset.PixelData = pixels.astype("<i2").tobytes()
        dataset["PixelData"].VR = "OW"
        return
    stream = imagecodecs.jpeg_encode(pixels.astype(np.uint16), lossless=True, bitspersample=12)
    dataset.PixelData = encapsulate([_without_app_segments(stream)])
    dataset["PixelData"].VR = "OB"


def _without_app_segments(stream: bytes | bytearray) -> bytes:
    """Remove the APPn segments, which scanners do not write."""
    segments, start = [stream[:2]], 2
    while stream[start] == 0xFF and stream[start + 1] != 0xDA:
        (length,) = struct.unpack_from(">H", stream, start + 2)
        if not 0xE0 <= stream[start + 1] <= 0xEF:
            segments.append(stream[start : start + 2 + length])
        start += 2 + length
    return b"".join([*segments, stream[start:]])


def _decimal(value: float) -> str:
    """Format a decimal string (DS) of at most 16 characters (PS3.5 6.2)."""
    return f"{float(value):.6f}"[:16]
