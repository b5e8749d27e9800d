"""Accuracy and speed of a localizer on held-out phantom patients.

    python benchmarks/localizer.py [--quick] [--json FILE] [--model OUT.onnx] [--store STORE]

Without --model, a localizer is trained first with the demo preset on the masks of STORE, or of new
phantoms; with --quick, on fewer of them and a coarser cube. New patients of all sites are then
scanned and located with the pipeline's own code, from overview to boxes. Dice is computed on the
voxels of the network's cube; a box is the crop that the pipeline would cut. The baseline is
image-independent: the mean position of each vertebra in the training studies. It is strong if all
scans show the same part of the neck, so as many patients are scanned with shifted ends and off
centre; the claims refer to the unshifted ones. Seconds are those of one core; of this network and
the default network (128 voxels) the slower counts.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from claims import Claim, describe_machine, report
from numpy.typing import NDArray

from pipeline.config import StudyConfig
from pipeline.cores import available_cores
from pipeline.phantom.patient import sample_patient
from pipeline.phantom.render import Grid, render_patient
from pipeline.phantom.scanner import INTERCEPT, SITES, acquire
from pipeline.vertebrae.anatomy import find_vertebrae
from pipeline.vertebrae.cropping import crop_box
from pipeline.vertebrae.locate import LocatedVertebra, locate_by_network
from pipeline.vertebrae.onnx_network import Network, choose_network, open_network
from pipeline.vertebrae.overview import make_overview
from storage_schemas import arrays
from storage_schemas.arrays import AIR_HU
from storage_schemas.catalog import make_table
from storage_schemas.cubes import shrink_cube
from storage_schemas.errors import StudyError
from storage_schemas.geometry import StackGeometry
from storage_schemas.localizer_card import LOCALIZED_LEVELS
from storage_schemas.store import OVERVIEW, OVERVIEW_LEVELS, VOLUMES, StudyStore
from storage_schemas.targets import COMPETITION

# torch is imported where it is used, because every scanning process imports this file.

PACKAGES = ("numpy", "torch", "monai", "onnx", "onnxruntime")
LEARNT, TESTED, MOVED = "learnt", "tested", "moved"
SEEDS = {LEARNT: 1, TESTED: 2, MOVED: 3}
"""Seeds of the patients, which differ from those of `cspine-pipeline phantom`."""
MARGIN_MM = StudyConfig().margin_mm
ENOUGH = 0.95
"""Fraction of a vertebra's voxels that its box must contain."""


@dataclass(frozen=True)
class ScannedPatient:
    """A new patient, as the pipeline holds it before localization.

    Parameters
    ----------
    site : str
        Name of the site.
    hu : ndarray, shape (z, y, x), int16, HU
        Voxels of the scan.
    labels : ndarray, shape (z, y, x), uint8
        True level of each voxel, in the store's numbers.
    geometry : StackGeometry
        Geometry of the scan.
    """

    site: str
    hu: NDArray[np.int16]
    labels: NDArray[np.uint8]
    geometry: StackGeometry

    def overview_levels(self, affine: NDArray[np.float64]) -> NDArray[np.uint8]:
        """True levels on the overview's grid, by nearest neighbour; no axis is rotated here."""
        origin = np.array(self.geometry.positions[0])[::-1]
        places = [
            (np.arange(128) * affine[2 - axis, axis] + affine[2 - axis, 3] - origin[axis])
            / self.geometry.spacing[axis]
            for axis in range(3)
        ]
        nearest = [
            np.rint(place).astype(int).clip(0, side - 1)
            for place, side in zip(places, self.labels.shape, strict=True)
        ]
        return self.labels[np.ix_(*nearest)]


def scan_patient(number: int, purpose: str, pixels: int, slices: int) -> ScannedPatient:
    """Sample and scan one patient; sites alternate."""
    random = np.random.default_rng([SEEDS[purpose], number])
    site = SITES[number % len(SITES)]
    patient = sample_patient(random)
    pixel = random.uniform(*site.fov_mm) / pixels
    side = (np.arange(pixels) - (pixels - 1) / 2) * pixel
    # From below T2 to above the foramen magnum, the usual range of a cervical-spine scan.
    low = -100 * patient.size - random.uniform(2, 12)
    high = 54 * patient.size + random.uniform(22, 34)
    right, back = random.normal(0, 4, 2)
    if purpose == MOVED:
        # Starting and ending higher than the others, and off centre.
        low, high = low + random.uniform(0, 20), high + random.uniform(0, 25)
        right, back = random.uniform(-15, 15, 2)
    grid = Grid(side + right, side + 10 + back, np.linspace(low, high, slices))
    scan = render_patient(patient, {}, grid, random)
    hu = acquire(scan.hu, grid, site, random) + np.int16(INTERCEPT)
    positions = tuple((float(grid.x[0]), float(grid.y[0]), float(z)) for z in grid.z)
    geometry = StackGeometry(grid.shape, positions, (1, 0, 0), (0, 1, 0), (pixel, pixel))
    return ScannedPatient(site.name, np.maximum(hu, AIR_HU), scan.labels, geometry)


def scan_patients(count: int, purpose: str, *, quick: bool) -> list[ScannedPatient]:
    """Scan patients on all cores."""
    pixels, slices = (128, 64) if quick else (192, 80)
    with ProcessPoolExecutor(available_cores(), get_context("spawn")) as pool:
        return list(
            pool.map(
                scan_patient, range(count), [purpose] * count, [pixels] * count, [slices] * count
            )
        )


def store_overviews(patients: Sequence[ScannedPatient], folder: Path) -> StudyStore:
    """Make a store that holds only the training data of a localizer."""
    store = StudyStore.create(str(folder))
    rows: list[dict[str, object]] = []
    for number, patient in enumerate(patients):
        study = f"2.25.{number + 1}"
        cube, affine = make_overview(patient.hu, patient.geometry)
        block = {"cspine": {"study": study, "affine": affine.tolist()}}
        objects = arrays.create_array(f"{study}/{OVERVIEW}", cube, block)
        levels = patient.overview_levels(affine)
        objects |= arrays.create_array(f"{study}/{OVERVIEW_LEVELS}", levels, block)
        store.objects.put_all({f"{VOLUMES}/{key}": data for key, data in objects.items()})
        counts = dict.fromkeys(("objects", "refused", "source_bytes"), 0)
        row = {"study": study, "patient": study, "scanner": patient.site, "outcome": "committed"}
        rows.append({**row, "kind": "", "overview_levels": True, **counts})
    store.write_table("studies", make_table("studies", rows, COMPETITION))
    return store


# ---- scores --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LevelResult:
    """Result for one vertebra of one patient, with the baseline.

    Parameters
    ----------
    level : str
        Name of the vertebra.
    dice : float
        Dice on the network's cube.
    dice_volume : float
        Dice on the volume.
    covered : float
        Fraction of the vertebra's voxels in the volume that its crop contains.
    wrong : bool
        Whether the prediction overlaps another vertebra more, or none.
    baseline_dice : float
        Dice of the constant baseline.
    baseline_covered : float
        Covered fraction of the constant baseline.
    """

    level: str
    dice: float
    dice_volume: float
    covered: float
    wrong: bool
    baseline_dice: float
    baseline_covered: float


def score_patient(
    patient: ScannedPatient, network: Network, baseline: Any
) -> tuple[list[LevelResult], float]:
    """Locate a patient's vertebrae and compare; also return the processor seconds of locating."""
    from training.localizer.overviews import level_classes, shrink_classes
    from training.localizer.scores import score_baseline

    overview = make_overview(patient.hu, patient.geometry)
    started = time.process_time()  # on one thread, in processor time
    try:
        found = locate_by_network(patient.hu, patient.geometry, overview, network, LOCALIZED_LEVELS)
        located = {vertebra.level: vertebra for vertebra in found.vertebrae}
    except StudyError:
        located = {}
    seconds = time.process_time() - started
    cube, affine = shrink_cube(*overview, network.size)
    found, _ = find_vertebrae(network.predict(cube), affine)
    parts = {vertebra.part.level: vertebra.part for vertebra in found}
    factor = len(overview[0]) // network.size
    truth = shrink_classes(level_classes(patient.overview_levels(overview[1])), factor)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    baselines = score_baseline(baseline, truth, spacing.tolist(), MARGIN_MM)
    results = []
    for number, (level, baseline_level) in enumerate(
        zip(LOCALIZED_LEVELS, baselines, strict=True), start=1
    ):
        inside = np.zeros(truth.shape, bool)
        if level in parts:
            inside[parts[level].extent] = parts[level].inside
        covered, dice, wrong = _score_volume(patient, number, located.get(level))
        result = LevelResult(
            level, _dice(inside, truth == number), dice, covered, wrong,
            baseline_level.dice or 0.0, baseline_level.covered or 0.0,
        )  # fmt: skip
        results.append(result)
    return results, seconds


def _score_volume(
    patient: ScannedPatient, number: int, found: LocatedVertebra | None
) -> tuple[float, float, bool]:
    """Return covered fraction, Dice, and whether the name is wrong."""
    there = patient.labels == number
    if found is None:
        return 0.0, 0.0, False
    inside = np.zeros(there.shape, bool)
    inside[found.extent] = found.inside
    below = np.bincount(patient.labels[inside], minlength=2)
    wrong = int(np.append(0, below[1:]).argmax()) != number
    box = crop_box(found.extent, patient.geometry, MARGIN_MM)
    return float(there[box].sum() / there.sum()), _dice(inside, there), wrong


def _dice(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def fit_store_baseline(store: StudyStore, size: int, folder: Path) -> Any:
    """Fit the constant baseline to a store's studies."""
    from training.localizer.overviews import open_overviews, read_masked
    from training.localizer.scores import fit_baseline

    studies = [study.study for study in read_masked(store)]
    with open_overviews(store, studies, size, folder) as overviews:
        return fit_baseline(list(overviews.classes))


def time_default(folder: Path) -> float:
    """Processor seconds of the default network, which do not depend on its weights."""
    from training.localizer.config import LocalizerConfig
    from training.localizer.onnx_export import export_network
    from training.localizer.unet import build_network

    config = LocalizerConfig()
    cube = np.zeros((1, 1, *[config.size] * 3), np.float32)
    model, _ = export_network(build_network(config, 0), config.size, cube)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    path = folder / "default.onnx"
    path.write_bytes(model.SerializeToString())
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    times = []
    for _ in range(3):
        started = time.process_time()
        session.run(None, {"overview": cube})
        times.append(time.process_time() - started)
    return min(times)


# ---- the run -------------------------------------------------------------------------------------


def measure(options: argparse.Namespace, folder: Path) -> tuple[list[dict[str, Any]], list[Claim]]:
    """Train if no model is given, scan, locate, and summarise."""
    from training.localizer.config import LOCALIZER_PRESETS
    from training.localizer.train import train_localizer

    if options.store:
        store = StudyStore.open(options.store)
    else:
        learnt = scan_patients(40 if options.quick else 160, LEARNT, quick=options.quick)
        store = store_overviews(learnt, folder / "store")
    model = options.model
    if model is None:
        model = folder / "localizer.onnx"
        config = LOCALIZER_PRESETS["demo"]
        if options.quick:
            config = replace(config, size=32, steps=500, folds=20)
        started = time.perf_counter()
        train_localizer(store, model, config)
        print(f"trained in {time.perf_counter() - started:.0f} s")
    network = open_network(choose_network(str(model)))
    baseline = fit_store_baseline(store, network.size, folder)
    results: dict[str, list[LevelResult]] = {TESTED: [], MOVED: []}
    times = []
    for purpose, found in results.items():
        count = 20 if options.quick else 40
        for patient in scan_patients(count, purpose, quick=options.quick):
            levels, seconds = score_patient(patient, network, baseline)
            found += levels
            times.append(seconds)
    default = time_default(folder)
    print(
        f"{count} new patients and {count} moved, {len(SITES)} sites; {network.size} voxels a side"
    )
    print(f"seconds of a core: {np.median(times):.2f} a study, default network {default:.2f}")
    rows = [
        summarise(level, [result for result in results[TESTED] if result.level == level])
        for level in LOCALIZED_LEVELS
    ]
    whole = summarise("all", results[TESTED])
    claims = [
        Claim("Dice", whole["Dice"], 0.85),
        Claim("boxes covering 95%", whole["boxes covering 95%"], 0.97),
        Claim("levels named wrongly", whole["named wrongly"], 0, "lower"),
        Claim("inference s per study", max(float(np.median(times)), default), 3, "lower"),
    ]
    return [*rows, whole, summarise("all, moved", results[MOVED])], claims


def summarise(name: str, results: Sequence[LevelResult]) -> dict[str, Any]:
    """Return one row of the table."""

    def mean(values: Sequence[float]) -> float:
        return float(np.mean(values))

    return {
        "level": name,
        "vertebrae": len(results),
        "Dice": mean([r.dice for r in results]),
        "Dice in the volume": mean([r.dice_volume for r in results]),
        "baseline Dice": mean([r.baseline_dice for r in results]),
        "boxes covering 95%": mean([r.covered >= ENOUGH for r in results]),
        "baseline boxes": mean([r.baseline_covered >= ENOUGH for r in results]),
        "not found": sum(r.dice_volume == 0 for r in results),
        "named wrongly": sum(r.wrong for r in results),
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="run in under a minute, with less precise values"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--model", type=Path, metavar="OUT.onnx", help="localizer to score")
    parser.add_argument("--store", metavar="STORE", help="train on the masks of this store")
    options = parser.parse_args()
    machine = describe_machine(PACKAGES)
    with tempfile.TemporaryDirectory(prefix="cspine-localizer-") as folder:
        rows, claims = measure(options, Path(folder))
    report(machine, rows, claims, options.json)


if __name__ == "__main__":
    main()
