"""Kinds of faulty studies, made from correct ones by damage that occurs in real archives."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.encaps import encapsulate, generate_frames

from pipeline.phantom.scanner import SITES, Site


def _unchanged(folder: Path) -> None:
    """Leave the files as they are; the fault is in the scan itself."""


@dataclass(frozen=True)
class Fault:
    """One kind of faulty study.

    Parameters
    ----------
    name : str
        Name of the fault.
    expected : str
        Expected result of the pipeline: the kind of an object's or a study's quarantine, the
        outcome of an unused object, or a geometry class.
    damage : callable
        Function that damages the files in the folder of a study.
    site : Site or None
        Site of the study, where the fault needs a certain encoding.
    tilt_degrees : float
        Tilt of the gantry in degrees.
    spine : bool
        Whether the scan shows a spine.
    masked : bool
        Whether the study has a mask.
    """

    name: str
    expected: str
    damage: Callable[[Path], None] = _unchanged
    site: Site | None = None
    tilt_degrees: float = 0.0
    spine: bool = True
    masked: bool = True


def _files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir(), key=lambda path: int(path.stem))


def _truncate_file(folder: Path) -> None:
    victim = _files(folder)[5]
    data = victim.read_bytes()
    victim.write_bytes(data[: len(data) * 2 // 3])


def _halve_fragment(folder: Path) -> None:
    victim = _files(folder)[5]
    dataset = pydicom.dcmread(victim)
    (frame,) = generate_frames(dataset.PixelData, number_of_frames=1)
    dataset.PixelData = encapsulate([frame[: len(frame) // 4 * 2]])
    dataset.save_as(victim, enforce_file_format=True)


def _lose_slice(folder: Path) -> None:
    files = _files(folder)
    files[len(files) // 2].unlink()


def _repeat_slice(folder: Path) -> None:
    files = _files(folder)
    copy = folder / f"{len(files) + 1}.dcm"
    shutil.copyfile(files[len(files) // 2], copy)
    dataset = pydicom.dcmread(copy)
    dataset.InstanceNumber = len(files) + 1
    dataset.SOPInstanceUID = f"{dataset.SeriesInstanceUID}.{len(files) + 1}"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.save_as(copy, enforce_file_format=True)


def _add_scout(folder: Path) -> None:
    files = _files(folder)
    dataset = pydicom.dcmread(files[0])
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    dataset.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
    dataset.InstanceNumber = len(files) + 1
    dataset.SOPInstanceUID = f"{dataset.SeriesInstanceUID}.{len(files) + 1}"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.save_as(folder / f"{len(files) + 1}.dcm", enforce_file_format=True)


FAULTS = (
    Fault("truncated file", "truncated", _truncate_file, site=SITES[1]),
    Fault("half a JPEG fragment", "codestream-truncated", _halve_fragment, site=SITES[2]),
    Fault("missing slice", "missing", _lose_slice),
    Fault("duplicate slice", "unused:other-set", _repeat_slice),
    Fault("tilt", "tilted", tilt_degrees=12.0),
    Fault("scout in the series", "unused:scout", _add_scout),
    Fault("no vertebra", "vertebra-not-found", spine=False),
)
"""Faults of a cohort, one study each, in this order."""
