"""The known bad kinds of study, each made from a good one by damage that real archives show."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.encaps import encapsulate, generate_frames

from pipeline.phantom.scanner import SITES, Site


def _leave(folder: Path) -> None:
    """Do no damage to the files; the fault lies in what was scanned."""


@dataclass(frozen=True)
class Fault:
    """One kind of bad study.

    Parameters
    ----------
    name : str
    expected : str
        What the pipeline must say: a kind of quarantine of an object or a study, or a class of
        geometry.
    damage : callable
        Applied to the study's folder.
    site : Site or None
        Where the fault needs a certain coding.
    tilt_degrees : float
        Of the gantry.
    spine : bool
        Whether there is one.
    masked : bool
        Whether there is a mask.
    """

    name: str
    expected: str
    damage: Callable[[Path], None] = _leave
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


def _add_localizer(folder: Path) -> None:
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
    Fault("duplicate slice", "duplicate-slice", _repeat_slice),
    Fault("tilt", "tilted", tilt_degrees=12.0),
    Fault("localizer in the series", "not-in-stack", _add_localizer),
    Fault("no vertebra", "vertebra-not-found", spine=False),
)
"""In this order, one study each."""
