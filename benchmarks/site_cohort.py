"""A phantom cohort of hospitals that differ as hospitals do, preprocessed by the real pipeline.

Each hospital has its own scanner (kernel, noise, field of view) and its own patients: which levels
break, and how often, follows from whom an emergency room sees. Falls of the old break C1 and C2,
the road and shallow water break C5 to C7 (Goldberg et al., Distribution and Patterns of Blunt
Traumatic Cervical Spine Injury, Ann Emerg Med 2001, doi:10.1067/mem.2001.116150). Only the neck is
scanned, and fractures are comminuted and gape more than in `pipeline.phantom`, so that a small ViT
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
from storage_schemas.vertebrae import CERVICAL, LABEL_COLUMNS

NECK_MM = (-88.0, 44.0)
"""Below and above the middle of C4, of a patient of size 1."""

SHEETS = 4
"""Times that sheets are drawn for a broken vertebra, at most."""


@dataclass(frozen=True)
class Hospital:
    """Where patients come from.

    Parameters
    ----------
    site : Site
        Its scanner.
    broken : float
        Share of its patients with a fracture.
    levels : mapping of str to float
        How often each level breaks, beside the others.
    """

    site: Site
    broken: float
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


ELSEWHERE = (Hospital(_scanner(0, 0.1, (15, 35)), 0.6, dict.fromkeys(CERVICAL, 1.0)),)
"""Whose patients a model has seen before: what pretraining is to a model of natural images."""


def make_site_store(
    folder: Path,
    patients: int,
    *,
    seed: int,
    size: int,
    slices: int,
    hospitals: Sequence[Hospital] = HOSPITALS,
) -> str:
    """Write the DICOM of so many patients, evenly from the hospitals, and preprocess it.

    Returns
    -------
    str
        The store below `folder`.
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
        ("StudyInstanceUID", *LABEL_COLUMNS),
        [
            (study, int(bool(broken)), *(int(c in broken) for c in CERVICAL))
            for study, broken, _ in rows
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
    broken = _draw_broken(hospital, random)
    fractures = {level: _shatter(level, random) for level in broken}
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
    return study, broken, boxes


def _draw_broken(hospital: Hospital, random: np.random.Generator) -> tuple[str, ...]:
    if random.random() >= hospital.broken:
        return ()
    weights = np.array([hospital.levels.get(level, 0.0) for level in CERVICAL])
    count = 1 + int(random.random() < 0.4)
    chosen = random.choice(len(CERVICAL), count, replace=False, p=weights / weights.sum())
    return tuple(CERVICAL[level] for level in sorted(chosen))


def _shatter(level: str, random: np.random.Generator) -> tuple[Fracture, ...]:
    """A comminuted fracture: sheets at several places of one vertebra, wide and tall."""
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
