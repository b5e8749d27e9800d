"""Decoding speed: slices per second, from files on disk to an int16 volume of HU in memory.

    python benchmarks/decode.py [--quick] [--json FILE] [--realdata FOLDER]

All readers read the same files in the same process, taking turns for several rounds. The best round
of each counts, and its volume is compared with the truth voxel by voxel. Compared with: SimpleITK,
dcm2niix (which writes a NIfTI file that is then read), dicom2nifti, MONAI, and a loop over pydicom
that sorts by position, with each decoder plugin. Needs the extra `bench`.
"""

import argparse
import contextlib
import io
import logging
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import rle
from claims import Claim, describe_machine, report
from numpy.typing import NDArray
from pydicom.encaps import encapsulate

from pipeline.dicom.volume import read_volume
from pipeline.phantom.patient import sample_patient
from pipeline.phantom.render import Grid, render_patient
from pipeline.phantom.scanner import INTERCEPT, SITES, Series, acquire, make_slice

Volume = NDArray[np.int16]
SYNTAXES = {
    "raw": "1.2.840.10008.1.2.1",
    "RLE": "1.2.840.10008.1.2.5",
    ".70": "1.2.840.10008.1.2.4.70",
    ".80": "1.2.840.10008.1.2.4.80",
    ".90": "1.2.840.10008.1.2.4.90",
}
PACKAGES = (
    "imagecodecs", "SimpleITK", "dcm2niix", "dicom2nifti", "monai", "pydicom", "python-gdcm",
    "pylibjpeg", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg", "pylibjpeg-rle", "numpy",
)  # fmt: skip
SITE = replace(SITES[2], syntax=SYNTAXES["raw"])
REAL = {
    "GE head, raw": "neurolabusc+dcm_qa_ct/In/GE",
    "TotalSegmentator, .90": "wasserth+TotalSegmentator/tests/reference_files/example_ct_dicom",
    "IBSI, raw, small": "theibsi+data_sets/ibsi_validation/dicom/STS_008/CT/image",
}


# ---- the series ----------------------------------------------------------------------------------


def make_grid(count: int) -> Grid:
    """Return a grid of 512 x 512 voxels of 0.3 mm, with slices from T2 to the skull base."""
    x = (np.arange(512) - 255.5) * 0.3
    return Grid(x, x + 10, np.linspace(-105, 80, count), 0.0)


def make_stack(grid: Grid) -> NDArray[np.uint16]:
    """Return stored values, (z, y, x), 12 bits unsigned, of a phantom's neck at `SITE`."""
    random = np.random.default_rng(0)
    scan = render_patient(sample_patient(random), {}, grid, random)
    return acquire(scan.hu, grid, SITE, random).astype(np.uint16)


def encode(image: NDArray[np.uint16], name: str) -> bytes:
    """Encode one slice's pixel data in a transfer syntax of `SYNTAXES`."""
    encoders: dict[str, Callable[[], bytes]] = {
        "raw": image.tobytes,
        "RLE": lambda: rle.encode_pixel_data(
            image.tobytes(),
            rows=image.shape[0],
            columns=image.shape[1],
            samples_per_pixel=1,
            number_of_frames=1,
            bits_allocated=16,
            photometric_interpretation="MONOCHROME2",
            byteorder="<",
        ),
        ".70": lambda: imagecodecs.jpeg_encode(image, lossless=True, predictor=1, bitspersample=12),
        ".80": lambda: imagecodecs.jpegls_encode(image),
        ".90": lambda: imagecodecs.jpeg2k_encode(
            image, level=0, codecformat="j2k", bitspersample=12, reversible=True
        ),
    }
    return bytes(encoders[name]())


def write_series(folder: Path, stack: NDArray[np.uint16], grid: Grid, name: str) -> None:
    """Write a stack as one file per slice; file names are not in spatial order."""
    series = Series("1.2.826.0.1.3680043.8.498.1", "1.2.826.0.1.3680043.8.498.1.1", "P", False)
    folder.mkdir(parents=True)
    for z, image in enumerate(stack):
        data = make_slice(image.astype(np.int16), z, grid, SITE, series)
        data.file_meta.TransferSyntaxUID = SYNTAXES[name]
        piece = encode(image, name)
        data.PixelData = piece if name == "raw" else encapsulate([piece])
        data["PixelData"].VR = "OW" if name == "raw" else "OB"
        data["PixelData"].is_undefined_length = name != "raw"
        data.save_as(folder / f"{(z * 7919) % len(stack):04}.dcm", enforce_file_format=True)


# ---- readers -------------------------------------------------------------------------------------


def ours(folder: Path) -> Volume:
    """Read with this pipeline, fetching files ahead while headers are parsed."""
    with ThreadPoolExecutor(2) as pool:
        files = pool.map(lambda path: (path.name, path.read_bytes()), folder.iterdir())
        return read_volume(files, mask_padding=False).hu


def simpleitk(folder: Path) -> Volume:
    """Read with SimpleITK's series reader."""
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    reader.SetOutputPixelType(SimpleITK.sitkInt16)
    return SimpleITK.GetArrayFromImage(reader.Execute())


def dcm2niix(folder: Path) -> Volume:
    """Convert to NIfTI with dcm2niix, and read with nibabel."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as out:
        command = ["dcm2niix", "-z", "n", "-b", "n", "-f", "v", "-o", out, str(folder)]
        subprocess.run(command, check=True, capture_output=True)
        found = [p for p in Path(out).glob("*.nii") if not p.stem.endswith(("_Eq", "_Tilt"))]
        return _read_nifti(found[0])


def dicom2nifti(folder: Path) -> Volume:
    """Convert to NIfTI with dicom2nifti, and read with nibabel."""
    import dicom2nifti

    with tempfile.TemporaryDirectory(dir=folder.parent) as out:
        file = Path(out) / "v.nii"
        dicom2nifti.dicom_series_to_nifti(str(folder), str(file), reorient_nifti=False)
        return _read_nifti(file)


def monai(folder: Path) -> Volume:
    """Read with MONAI's LoadImage and its pydicom reader."""
    from monai.transforms import LoadImage

    image = LoadImage(reader="PydicomReader", image_only=True, dtype=np.int16)(str(folder))
    return np.asarray(image).transpose(2, 1, 0)


def pydicom_with(plugin: str) -> Callable[[Path], Volume]:
    """Make a reader that loops over pydicom with one decoder plugin, sorted by position."""

    def read(folder: Path) -> Volume:
        slices = [pydicom.dcmread(path) for path in folder.iterdir()]
        slices.sort(key=lambda one: float(one.ImagePositionPatient[2]))
        out = np.empty((len(slices), slices[0].Rows, slices[0].Columns), np.int16)
        for z, one in enumerate(slices):
            compressed = one.file_meta.TransferSyntaxUID.is_encapsulated
            words = pydicom.pixels.pixel_array(one, decoding_plugin=plugin if compressed else "")
            out[z] = words.astype(np.int32) * int(one.RescaleSlope) + int(one.RescaleIntercept)
        return out

    return read


def _read_nifti(file: Path) -> Volume:
    """Read a NIfTI file as (z, y, x), with z and y in the order of the file."""
    import nibabel

    image = nibabel.load(file, mmap=False)
    slope, intercept = image.dataobj.slope, image.dataobj.inter
    stored = image.dataobj.get_unscaled()
    return (stored * np.int16(slope) + np.int16(intercept)).transpose(2, 1, 0)


PEERS: dict[str, Callable[[Path], Volume]] = {
    "SimpleITK": simpleitk,
    "dcm2niix": dcm2niix,
    "dicom2nifti": dicom2nifti,
    "MONAI": monai,
    "pydicom+gdcm": pydicom_with("gdcm"),
    "pydicom+pylibjpeg": pydicom_with("pylibjpeg"),
}
OURS = "this pipeline"
NOT_PYTHON = ("dcm2niix",)


# ---- the race ------------------------------------------------------------------------------------


@dataclass
class Lane:
    """Results of one reader on one series: wall and processor seconds by round, and correctness."""

    seconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    correctness: str = ""


def race(
    folder: Path, rounds: int, truth: Volume | None, readers: dict[str, Callable[[Path], Any]]
) -> dict[str, Lane]:
    """Let all readers read one series, taking turns."""
    lanes = {name: Lane() for name in readers}
    for number in range(rounds + 1):  # the first round warms up caches and imports
        for name, read in readers.items():
            lane = lanes[name]
            if lane.correctness.startswith("fails"):
                continue
            try:
                with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                    warnings.simplefilter("ignore")
                    start, work = time.perf_counter(), processor_seconds()
                    volume = read(folder)
                    seconds, work = time.perf_counter() - start, processor_seconds() - work
            except Exception as error:  # noqa: BLE001 - a peer may fail in any way; that is a result
                lane.correctness = f"fails: {type(error).__name__}"
                continue
            if number == 0:
                lane.correctness = compare(volume, truth)
            else:
                lane.seconds.append(seconds)
                lane.processor.append(work)
    return lanes


def processor_seconds() -> float:
    """Return processor seconds of this process and its finished children, over all cores."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, who))


def compare(volume: Volume, truth: Volume | None) -> str:
    """Compare a volume with the true voxels; reversed axes are accepted."""
    if truth is None:
        return "reference"
    if volume.shape != truth.shape:
        return f"shape {volume.shape}"
    flips = [(dz, dy) for dz in (1, -1) for dy in (1, -1)]
    if any(np.array_equal(volume[::dz, ::dy], truth) for dz, dy in flips):
        return "exact"
    return "other voxels"


def main() -> None:
    """Run the comparison and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="run in under a minute, with less precise values"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    default = Path(__file__).resolve().parents[2] / "shared" / "realdata"
    parser.add_argument("--realdata", type=Path, default=default, help="folder of real series")
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # other readers print a message for every series
    count, rounds = (24, 2) if options.quick else (200, 3)
    real = dict(list(REAL.items())[: 1 if options.quick else None])
    rows: list[dict[str, Any]] = []
    rates: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as root:
        grid = make_grid(count)
        stack = make_stack(grid)
        truth = (stack + np.uint16(INTERCEPT & 0xFFFF)).view(np.int16)
        for name in SYNTAXES:
            folder = Path(root) / name / "series"
            write_series(folder, stack, grid, name)
            rates[name] = enter(rows, name, folder, rounds, truth)
            shutil.rmtree(folder)
        for name, path in real.items() if options.realdata.is_dir() else ():
            folder = Path(root) / name.split(",")[0] / "series"
            shutil.copytree(options.realdata / path, folder)
            enter(rows, name, folder, rounds, ours(folder))
    report(describe_machine(PACKAGES), rows, make_claims(rates), options.json)


def enter(
    rows: list[dict[str, Any]], name: str, folder: Path, rounds: int, truth: Volume
) -> dict[str, float]:
    """Compare all readers on one series; add the rows and return slices per second by reader."""
    lanes = race(folder, rounds, truth, {OURS: ours, **PEERS})
    count = len(truth)
    rates = {n: count / min(lane.seconds) for n, lane in lanes.items() if lane.seconds}
    for reader, lane in lanes.items():
        rate = rates.get(reader)
        rows.append(
            {
                "series": name,
                "reader": reader,
                "slices/s": rate if rate else "-",
                "ms/slice": 1e3 / rate if rate else "-",
                "cpu ms/slice": 1e3 * min(lane.processor) / count if rate else "-",
                "speed-up": rates[OURS] / rate if rate else "-",
                "voxels": lane.correctness,
            }
        )
    return rates


def make_claims(rates: dict[str, dict[str, float]]) -> list[Claim]:
    """Make the claims: ratios of slices per second, this pipeline to the others."""

    def fastest(series: str, *without: str) -> float:
        return max(rate for n, rate in rates[series].items() if n not in (OURS, *without))

    def ratio(series: str, theirs: float) -> float:
        return rates[series][OURS] / theirs

    return [
        Claim(".70 vs SimpleITK", ratio(".70", rates[".70"]["SimpleITK"]), 4.0),
        Claim(".70 vs fastest other peer", ratio(".70", fastest(".70", "SimpleITK")), 2.0),
        Claim(".80 vs fastest peer", ratio(".80", fastest(".80")), 1.5),
        Claim(".90 vs fastest peer", ratio(".90", fastest(".90")), 1.5),
        Claim("RLE vs fastest peer", ratio("RLE", fastest("RLE")), 1.0),
        Claim("raw vs dcm2niix", ratio("raw", rates["raw"]["dcm2niix"]), 0.5),
        Claim("raw vs fastest Python peer", ratio("raw", fastest("raw", *NOT_PYTHON)), 1.0),
    ]


if __name__ == "__main__":
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    main()
