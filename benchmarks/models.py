"""Sequence model, slice model, their blend and the best constant on locked phantom patients.

Both models have the same encoder, made from the same seed, and go through the same round loop. They
take as many optimizer steps with as many slices through the encoder in each: a slice is the fair
unit, since it is what costs; a sequence step just takes them from fewer vertebrae. The sequence
model's patient head then learns from features, for which each slice of a round goes through the
encoder once more without a gradient. The table counts what each run put through its encoder.

    python benchmarks/models.py
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from claims import Claim, describe_machine, report

from pipeline.cli import main as pipeline_main
from pipeline.phantom import make_cohort
from storage_schemas.store import StudyStore
from training.blending import blend
from training.boosting import boost
from training.config import PRESETS, RunConfig, SplitConfig
from training.evaluate import BEST, MODEL, Evaluation, evaluate
from training.runs import HISTORY, RunFolder

PACKAGES = ("torch", "transformers", "numpy")
SEEDS = (0, 1, 2)
ENCODERS = ("ResNetModel", "ViTModel")
RECIPES = {"slice": "boost", "sequence": "sequence"}


@dataclass(frozen=True)
class Size:
    """How large a race is."""

    studies: int
    pixels: int
    slices: int
    config: RunConfig


def full_size() -> Size:
    """The demo's training patients and settings, with smaller pictures.

    Held-out parts are larger: losses are compared that differ by hundredths, which neither 40 test
    patients nor 20 that calibrate can tell.
    """
    demo = PRESETS["demo"]
    config = replace(
        demo,
        inputs=replace(demo.inputs, size=112),
        split=SplitConfig(guard=0.15, calibration=0.15, test=0.4),
    )
    return Size(400, 192, 80, config)


def quick_size() -> Size:
    """Enough to run every line; nothing is learnt."""
    demo = PRESETS["demo"]
    return Size(
        32,
        40,
        18,
        replace(
            demo,
            inputs=replace(demo.inputs, size=32),
            model=replace(demo.model, width=32),
            train=replace(demo.train, epochs=1.0),
            split=replace(demo.split, guard=0.2, calibration=0.3),
        ),
    )


def make_store(folder: Path, size: Size) -> str:
    """A phantom cohort, preprocessed."""
    cohort, store = folder / "cohort", folder / "store"
    make_cohort(cohort, studies=size.studies, size=size.pixels, slices=size.slices)
    labels = ["--labels", str(cohort / "train.csv")]
    boxes = ["--boxes", str(cohort / "train_bounding_boxes.csv")]
    masks = ["--masks", str(cohort / "segmentations")]
    if pipeline_main(["run", str(cohort), str(store), *masks, *labels, *boxes]):
        raise SystemExit("the cohort could not be preprocessed")
    return str(store)


@contextmanager
def counting(counts: dict[str, int]) -> Iterator[None]:
    """Count the slices that go through any encoder within the block, to be learnt from or not."""

    def count(module: torch.nn.Module, arguments: Any, output: Any) -> None:
        if type(module).__name__ in ENCODERS:
            counts["trained" if torch.is_grad_enabled() else "seen"] += len(output[0])

    handle = torch.nn.modules.module.register_module_forward_hook(count)
    try:
        yield
    finally:
        handle.remove()


def race(store: StudyStore, folder: Path, size: Size, seed: int) -> list[dict[str, Any]]:
    """Train both models and blend them; one row for each, and one for the constant."""
    rows: list[dict[str, Any]] = []
    runs = {}
    for name, recipe in RECIPES.items():
        run = RunFolder(folder / f"{name}-{seed}")
        counts = {"trained": 0, "seen": 0}
        began = time.monotonic()
        with counting(counts):
            boost(store, run, replace(size.config, recipe=recipe, seed=seed), None)
        seconds = time.monotonic() - began
        steps = sum(line["steps"] for line in run.lines(HISTORY))
        runs[name] = run
        more = {
            "steps": steps,
            "slices trained": counts["trained"],
            "slices seen": counts["seen"],
            "seconds": round(seconds),
        }
        rows.append(_row(name, seed, evaluate(store, run), more))
    out = RunFolder(folder / f"blend-{seed}")
    blend(store, out, list(runs.values()))
    found = evaluate(store, out)
    rows.append(_row("blend", seed, found, {}))
    return [*rows, _row("constant", seed, found, {}, of=BEST)]


def _row(
    name: str, seed: int, found: Evaluation, more: dict[str, Any], of: str = MODEL
) -> dict[str, Any]:
    auc = {
        group: found.figures[MODEL][group]["auc"] if of == MODEL else None
        for group in ("levels", "patient_overall")
    }
    return {
        "model": name,
        "seed": seed,
        "loss": round(found.losses[of]["all"], 4),
        "AUC levels": "" if auc["levels"] is None else round(auc["levels"][0], 3),
        "AUC patient": ""
        if auc["patient_overall"] is None
        else round(auc["patient_overall"][0], 3),
        "steps": "",
        "slices trained": "",
        "slices seen": "",
        "seconds": "",
        **more,
    }


def claim(rows: list[dict[str, Any]]) -> list[Claim]:
    """The ratios of mean losses over the seeds."""

    def mean(name: str) -> float:
        return float(np.mean([row["loss"] for row in rows if row["model"] == name]))

    ratios = {
        "sequence / slice log loss": mean("sequence") / mean("slice"),
        "blend / best single log loss": mean("blend") / min(mean("sequence"), mean("slice")),
        "sequence / constant log loss": mean("sequence") / mean("constant"),
    }
    return [Claim(name, value, 1.0, "lower") for name, value in ratios.items()]


def main() -> None:
    """Run the race."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--store", help="a phantom store that is there (default: make one)")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), metavar="S")
    parser.add_argument("--quick", action="store_true", help="tiny, one seed, under a minute")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    size = quick_size() if options.quick else full_size()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="cspine-models-") as place:
        store = StudyStore.open(options.store or make_store(Path(place), size))
        for seed in options.seeds[:1] if options.quick else options.seeds:
            rows += race(store, Path(place), size, seed)
    report(describe_machine(PACKAGES), rows, claim(rows), options.json)


if __name__ == "__main__":
    main()
