"""Make a cohort in the layout of the competition: DICOM, csv files and masks.

Equal arguments and seeds give equal bytes. The numbers of fractured levels per study, and of
fractures per level, have the frequencies of the competition's ``train.csv`` (2,019 studies).
"""

import hashlib
import multiprocessing
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np

from pipeline.cores import available_cores
from pipeline.phantom.faults import FAULTS, Fault
from pipeline.phantom.fractures import sample_fractures
from pipeline.phantom.patient import sample_patient
from pipeline.phantom.render import Grid, Scan, render_patient
from pipeline.phantom.scanner import SITES, Series, Site, acquire, make_slice, save_slice
from presentation.output import csv_text, write_output
from storage_schemas.errors import UsageError, reason_of
from storage_schemas.targets import COMPETITION

UID_ROOT = "1.2.826.0.1.3680043.8.498"
FRACTURED_LEVELS = (1058, 623, 239, 64, 26, 7, 2)
"""Number of studies with 0, 1, ... 6 fractured levels."""
FRACTURES_BY_LEVEL = (146, 285, 73, 108, 162, 277, 393)
"""Number of studies in which C1, ... C7 is fractured."""
REVERSED_SHARE = 0.1
"""Fraction of the studies whose InstanceNumber ascends from feet to head."""
ODD_STUDY = 4
"""Index of the study that has more columns than rows."""
SLICES = 100
"""Default number of slices of a study, plus or minus 5 %."""


@dataclass(frozen=True)
class CohortSummary:
    """Counts of a cohort.

    Parameters
    ----------
    studies, slices : int
        Number of studies and of slices.
    positives : int
        Number of studies with a fracture.
    boxes : int
        Number of bounding boxes.
    """

    studies: int
    slices: int
    positives: int
    boxes: int


@dataclass(frozen=True)
class StudyPlan:
    """Specification of one study.

    Parameters
    ----------
    index : int
        Index in the cohort, which seeds the random numbers of the study together with `seed`.
    seed : int
        Seed of the cohort.
    study : str
        StudyInstanceUID.
    site : Site
        Site whose scanner is simulated.
    fractured : tuple of str
        Fractured levels.
    size, columns, slices : int
        Number of rows, columns and slices.
    reversed_numbers : bool
        Whether InstanceNumber ascends from feet to head instead of from head to feet.
    masked : bool
        Whether the study has a mask.
    fault : Fault or None
        Fault of the study; None without one.
    """

    index: int
    seed: int
    study: str
    site: Site
    fractured: tuple[str, ...]
    size: int
    columns: int
    slices: int
    reversed_numbers: bool
    masked: bool
    fault: Fault | None = None


def make_cohort(
    out: Path,
    *,
    studies: int = 30,
    seed: int = 0,
    size: int = 256,
    faults: bool = False,
    slices: int | None = None,
    masked: float = 1.0,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CohortSummary:
    """Write a cohort.

    Parameters
    ----------
    out : Path
        Folder to create; it may exist if it is empty.
    studies : int
        Number of studies without faults.
    seed : int
        Seed of all random numbers; the number of workers does not matter.
    size : int
        Number of rows and columns, 32 to 1024.
    faults : bool
        Whether to add one study for each of `pipeline.phantom.faults.FAULTS`.
    slices : int, optional
        Number of slices of a study, 12 to 1000, plus or minus 5 %; `SLICES` by default.
    masked : float
        Fraction of the studies with a mask, 0 to 1.
    workers : int, optional
        Number of processes; all usable cores by default.
    progress : callable, optional
        Function that is called with the number of finished studies and their total.

    Returns
    -------
    CohortSummary
        Counts of the cohort.

    Raises
    ------
    UsageError
        ``config-invalid`` where the folder is not empty or an argument is out of range.
    """
    if studies < 1:
        raise UsageError("config-invalid", f"--studies {studies}: not 1 or more")
    if not 32 <= size <= 1024:
        raise UsageError("config-invalid", f"--size {size} px: not in 32 to 1024")
    if slices is not None and not 12 <= slices <= 1000:
        raise UsageError("config-invalid", f"--slices {slices}: not in 12 to 1000")
    if not 0 <= masked <= 1:
        raise UsageError("config-invalid", f"a share of {masked} masks: not in 0 to 1")
    plans = _plan(studies, seed, size, slices or SLICES, masked, faults)
    _prepare(out)
    count = workers or available_cores()
    boxes: list[tuple[str, int, int, int, int, int]] = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(count, len(plans)), context) as pool:
        for done, rows in enumerate(pool.map(_write_study, plans, [out] * len(plans)), start=1):
            boxes += rows
            if progress:
                progress(done, len(plans))
    _write_tables(out, plans, boxes)
    return CohortSummary(
        studies=len(plans),
        slices=sum(plan.slices for plan in plans),
        positives=sum(bool(plan.fractured) for plan in plans),
        boxes=len(boxes),
    )


def _plan(
    studies: int, seed: int, size: int, slices: int, masked: float, faults: bool
) -> list[StudyPlan]:
    random = np.random.default_rng([seed, 0])
    reversed_ones = set(random.permutation(studies)[: round(studies * REVERSED_SHARE)].tolist())
    masked_ones = set(random.permutation(studies)[: round(studies * masked)].tolist())
    plans = [
        StudyPlan(
            index=index,
            seed=seed,
            study=_uid(seed, index),
            site=SITES[index % len(SITES)],
            fractured=_sample_levels(random),
            size=size,
            columns=size + 7 if index == ODD_STUDY else size,
            slices=slices + int(random.integers(-slices // 20, slices // 20 + 1)),
            reversed_numbers=index in reversed_ones,
            masked=index in masked_ones,
        )
        for index in range(studies)
    ]
    for number, fault in enumerate(FAULTS if faults else ()):
        model = plans[number % len(plans)]
        index = studies + number
        plans.append(
            replace(
                model,
                index=index,
                study=_uid(seed, index),
                site=fault.site or model.site,
                columns=size,
                masked=fault.masked,
                fault=fault,
            )
        )
    return plans


def _sample_levels(random: np.random.Generator) -> tuple[str, ...]:
    shares = np.array(FRACTURED_LEVELS) / sum(FRACTURED_LEVELS)
    count = int(random.choice(len(shares), p=shares))
    weights = np.array(FRACTURES_BY_LEVEL) / sum(FRACTURES_BY_LEVEL)
    levels = COMPETITION.levels
    chosen = random.choice(len(levels), size=count, replace=False, p=weights)
    return tuple(levels[level] for level in sorted(chosen))


def _uid(seed: int, index: int, *more: int) -> str:
    digest = hashlib.sha256(f"{seed}/{index}".encode()).digest()
    return ".".join([UID_ROOT, str(int.from_bytes(digest[:10], "big")), *map(str, more)])


def _prepare(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise UsageError("config-invalid", "the folder is not empty", key=str(out))
        (out / "train_images").mkdir()
        (out / "segmentations").mkdir()
    except OSError as error:
        reason = f"cannot be written: {reason_of(error)}"
        raise UsageError("config-invalid", reason, key=str(out)) from None


def _write_study(plan: StudyPlan, out: Path) -> list[tuple[str, int, int, int, int, int]]:
    """Write one study and return its rows of bounding boxes."""
    random = np.random.default_rng([plan.seed, 1, plan.index])
    patient = sample_patient(random)
    fractures = {level: sample_fractures(level, random) for level in plan.fractured}
    grid = _grid(plan, patient.size, random)
    spine = plan.fault is None or plan.fault.spine
    scan = render_patient(patient, fractures, grid, random, spine=spine)
    stored = acquire(scan.hu, grid, plan.site, random)
    series = Series(
        plan.study, f"{plan.study}.1", f"PHANTOM-{plan.index:05d}", plan.reversed_numbers
    )
    folder = out / "train_images" / plan.study
    folder.mkdir()
    for z in range(plan.slices):
        dataset = make_slice(stored[z], z, grid, plan.site, series)
        save_slice(dataset, folder / f"{dataset.InstanceNumber}.dcm")
    if plan.masked:
        write_mask(scan, grid, out / "segmentations" / f"{plan.study}.nii")
    if plan.fault:
        plan.fault.damage(folder)
    return [
        (plan.study, x0, y0, min(x1, plan.columns) - x0, min(y1, plan.size) - y0,
         series.number(z, plan.slices))
        for z, _, (x0, y0, x1, y1) in scan.boxes
    ]  # fmt: skip


def _grid(plan: StudyPlan, scale: float, random: np.random.Generator) -> Grid:
    pixel = random.uniform(*plan.site.fov_mm) / plan.size
    # From below T2 to above the foramen magnum; the origin is the centre of C4.
    low, high = -100.0 * scale - random.uniform(2, 12), 54.0 * scale + random.uniform(22, 34)
    shear = np.tan(np.radians(plan.fault.tilt_degrees)) if plan.fault else 0.0
    x = (np.arange(plan.columns) - (plan.columns - 1) / 2) * pixel + random.normal(0, 4)
    y = (np.arange(plan.size) - (plan.size - 1) / 2) * pixel + 10 + random.normal(0, 4)
    z = np.linspace(low, high, plan.slices)
    return Grid(x.astype(np.float64), y.astype(np.float64), z, float(shear))


def write_mask(scan: Scan, grid: Grid, path: Path) -> None:
    """Save the labels of a scan like the competition's masks.

    These are RAS with z ascending, and y flipped relative to the rows of the images.

    Parameters
    ----------
    scan : Scan
        Rendered patient with its labels.
    grid : Grid
        Voxel grid of the scan.
    path : Path
        File to write, NIfTI-1.
    """
    step = float(grid.z[1] - grid.z[0])
    pixel = grid.pixel_mm
    affine = np.array(
        [
            [-pixel, 0, 0, -grid.x[0]],
            [0, pixel, -grid.shear * step, -(grid.y[-1] + grid.shear * grid.z[0])],
            [0, 0, step, grid.z[0]],
            [0, 0, 0, 1],
        ]
    )
    data = np.ascontiguousarray(scan.labels[:, ::-1].transpose(2, 1, 0))
    nib.Nifti1Image(data, affine).to_filename(path)


def _write_tables(
    out: Path, plans: list[StudyPlan], boxes: Iterable[tuple[str, int, int, int, int, int]]
) -> None:
    _write_csv(
        out / "train.csv",
        ("StudyInstanceUID", *COMPETITION.columns),
        [
            (p.study, int(bool(p.fractured)), *(int(c in p.fractured) for c in COMPETITION.levels))
            for p in plans
        ],
    )
    header = ("StudyInstanceUID", "x", "y", "width", "height", "slice_number")
    _write_csv(out / "train_bounding_boxes.csv", header, boxes)
    order = (*COMPETITION.levels, COMPETITION.patient)
    targets = [(plan.study, target) for plan in plans for target in order]
    _write_csv(
        out / "test.csv",
        ("row_id", "StudyInstanceUID", "prediction_type"),
        [(f"{study}_{target}", study, target) for study, target in targets],
    )
    _write_csv(
        out / "sample_submission.csv",
        ("row_id", "fractured"),
        [(f"{study}_{target}", 0.5) for study, target in targets],
    )
    _write_csv(
        out / "phantom.csv",
        (
            *("StudyInstanceUID", "site", "transfer_syntax", "slices"),
            *("reversed", "masked", "fractured"),
        ),
        [
            (p.study, p.site.name, p.site.syntax, p.slices, int(p.reversed_numbers), int(p.masked),
             " ".join(p.fractured))
            for p in plans
        ],
    )  # fmt: skip
    faulty = [(p.study, p.fault.name, p.fault.expected) for p in plans if p.fault]
    if faulty:
        _write_csv(out / "faults.csv", ("StudyInstanceUID", "fault", "expected"), faulty)


def _write_csv(path: Path, header: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    write_output(path, csv_text(header, rows))
