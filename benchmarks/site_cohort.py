"""A phantom cohort of hospitals with different scanners and patients, preprocessed by the pipeline.

Each hospital has its own scanner (kernel, noise, field of view) and its own patients: the frequency
of fractures by level depends on the patient population. Falls of elderly patients fracture C1 and
C2; road and diving accidents fracture C5 to C7 (Goldberg et al., Distribution and Patterns of Blunt
Traumatic Cervical Spine Injury, Ann Emerg Med 2001, doi:10.1067/mem.2001.116150). Only the neck is
scanned, and fractures are comminuted and wider than in `pipeline.phantom`, so that a small ViT
learns from random weights in minutes.
"""

import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.cli import main as pipeline_main
from pipeline.cores import available_cores
from pipeline.phantom.cohort import write_mask
from pipeline.phantom.fractures import Fracture, sample_fractures
from pipeline.phantom.patient import sample_patient
from pipeline.phantom.render import Grid, render_patient
from pipeline.phantom.scanner import SITES, Series, Site, acquire, make_slice, save_slice
from presentation.output import csv_text, write_output
from storage_schemas.targets import COMPETITION

NECK_MM = (-88.0, 44.0)
"""Range below and above the centre of C4 in mm, for a patient of size 1."""

SHEETS = 4
"""Largest number of fracture sheets that are sampled for a vertebra."""


@dataclass(frozen=True)
class Hospital:
    """Population and scanner of a hospital.

    Parameters
    ----------
    site : Site
        Scanner of the hospital.
    fractured : float
        Fraction of its patients with a fracture.
    levels : mapping of str to float
        Relative frequency of fractures of each level.
    """

    site: Site
    fractured: float
    levels: Mapping[str, float]


def _scanner(number: int, blur: float, noise: tuple[float, float]) -> Site:
    name = f"Hospital {number}"
    return replace(
        SITES[1], name=name, model=name, blur=blur, noise_hu=noise, fov_mm=(104.0, 116.0)
    )


HOSPITALS = (
    Hospital(_scanner(1, -0.5, (10, 20)), 0.6, {"C1": 4, "C2": 6, "C3": 1}),
    Hospital(_scanner(2, 0.45, (10, 20)), 0.6, {"C6": 4, "C7": 6, "C5": 1}),
    Hospital(_scanner(3, 0.9, (30, 60)), 0.6, {"C3": 4, "C4": 5, "C5": 3}),
    Hospital(_scanner(4, -0.3, (25, 50)), 0.6, {"C5": 5, "C6": 5, "C2": 1}),
    Hospital(_scanner(5, 0.7, (15, 30)), 0.6, {"C2": 5, "C7": 5, "C1": 2}),
)


ELSEWHERE = (Hospital(_scanner(0, 0.1, (15, 35)), 0.6, dict.fromkeys(COMPETITION.levels, 1.0)),)
"""Hospital whose patients are used for pretraining."""


def make_site_store(
    folder: Path,
    patients: int,
    *,
    seed: int,
    size: int,
    slices: int,
    hospitals: Sequence[Hospital] = HOSPITALS,
) -> str:
    """Write DICOM files of patients, evenly from the hospitals, and preprocess them.

    Returns
    -------
    str
        URL of the store in `folder`.
    """
    source, store = folder / "source", folder / "store"
    for part in ("train_images", "segmentations"):
        (source / part).mkdir(parents=True)
    write = partial(
        _write_patient, seed=seed, out=source, size=size, slices=slices, hospitals=hospitals
    )
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(available_cores(), context) as pool:
        rows = list(pool.map(write, range(patients), chunksize=8))
    _write_csv(
        source / "train.csv",
        ("StudyInstanceUID", *COMPETITION.columns),
        [
            (study, int(bool(fractured)), *(int(c in fractured) for c in COMPETITION.levels))
            for study, fractured, _ in rows
        ],
    )
    _write_csv(
        source / "boxes.csv",
        ("StudyInstanceUID", "x", "y", "width", "height", "slice_number"),
        [box for *_, boxes in rows for box in boxes],
    )
    arguments = ["run", str(source), str(store), "--masks", str(source / "segmentations")]
    arguments += ["--labels", str(source / "train.csv"), "--boxes", str(source / "boxes.csv")]
    if pipeline_main(arguments):
        raise SystemExit("the cohort could not be preprocessed")
    return str(store)


def _write_patient(
    index: int, *, seed: int, out: Path, size: int, slices: int, hospitals: Sequence[Hospital]
) -> tuple[str, tuple[str, ...], list[tuple[object, ...]]]:
    random = np.random.default_rng([seed, index])
    hospital = hospitals[index % len(hospitals)]
    patient = sample_patient(random)
    fractured = _draw_broken(hospital, random)
    fractures = {level: _shatter(level, random) for level in fractured}
    pixel = random.uniform(*hospital.site.fov_mm) / size
    x = (np.arange(size) - (size - 1) / 2) * pixel + random.normal(0, 3)
    z = np.linspace(NECK_MM[0] * patient.size, NECK_MM[1] * patient.size, slices)
    grid = Grid(x, x + 10, z, 0.0)
    scan = render_patient(patient, fractures, grid, random)
    stored = acquire(scan.hu, grid, hospital.site, random)
    study = f"1.2.826.0.1.3680043.8.498.{seed}.{index}"
    series = Series(study, f"{study}.1", f"PHANTOM-{seed}-{index}", reversed_numbers=False)
    folder = out / "train_images" / study
    folder.mkdir()
    for place in range(slices):
        dataset = make_slice(stored[place], place, grid, hospital.site, series)
        save_slice(dataset, folder / f"{dataset.InstanceNumber}.dcm")
    write_mask(scan, grid, out / "segmentations" / f"{study}.nii")
    boxes: list[tuple[object, ...]] = [
        (study, x0, y0, min(x1, size) - x0, min(y1, size) - y0, series.number(place, slices))
        for place, _, (x0, y0, x1, y1) in scan.boxes
    ]
    return study, fractured, boxes


def _draw_broken(hospital: Hospital, random: np.random.Generator) -> tuple[str, ...]:
    if random.random() >= hospital.fractured:
        return ()
    weights = np.array([hospital.levels.get(level, 0.0) for level in COMPETITION.levels])
    count = 1 + int(random.random() < 0.4)
    chosen = random.choice(len(COMPETITION.levels), count, replace=False, p=weights / weights.sum())
    return tuple(COMPETITION.levels[level] for level in sorted(chosen))


def _shatter(level: str, random: np.random.Generator) -> tuple[Fracture, ...]:
    """Sample a comminuted fracture: wide and tall sheets at several places of one vertebra."""
    sheets = {one.site: one for _ in range(SHEETS) for one in sample_fractures(level, random)}
    return tuple(
        replace(
            one,
            width=float(random.uniform(2.6, 4.0)),
            half_height=1.5 * one.half_height,
            half_length=1.3 * one.half_length,
        )
        for one in sheets.values()
    )


def _write_csv(path: Path, header: tuple[str, ...], rows: list[tuple[object, ...]]) -> None:
    write_output(path, csv_text(header, rows))
