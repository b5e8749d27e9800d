"""Sequence model, slice model, their ensemble and the best constant on locked phantom patients.

Both models have the same encoder, as the slice model's rounds trained it. The comparison is how
scores of vertebrae and patients are computed from it: by a calibrated mean of the highest slices,
or by the heads of the sequence model. The heads go through the same round loop with as many
optimizer steps as the slice model took, on encoder features that are computed once. With
`--end-to-end`, a sequence model whose encoder is trained through its own heads, from the same
random weights, is included. The table counts the slices that each run passed through its encoder.

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
from training.config import PRESETS, RunConfig, SplitConfig
from training.evaluation.blend import blend
from training.evaluation.evaluate import BEST, MODEL, Evaluation, evaluate
from training.rounds.boosting import boost
from training.runs import HISTORY, RunFolder

PACKAGES = ("torch", "transformers", "numpy")
SEEDS = (0, 1, 2)
ENCODERS = ("ResNetModel", "ViTModel")


@dataclass(frozen=True)
class Size:
    """Size of a comparison."""

    studies: int
    pixels: int
    slices: int
    config: RunConfig


def full_size() -> Size:
    """The demo's training patients and settings, with smaller pictures.

    The held-out splits are larger: 40 test and 20 calibration patients cannot resolve differences
    of a few hundredths of the loss.
    """
    demo = PRESETS["demo"]
    config = replace(
        demo,
        inputs=replace(demo.inputs, size=112),
        split=SplitConfig(guard=0.15, calibration=0.15, test=0.4),
    )
    return Size(400, 192, 80, config)


def quick_size() -> Size:
    """Enough to run every line; nothing useful is trained."""
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
    """Preprocess a phantom cohort."""
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
    """Count the slices that pass through any encoder in the block, with and without gradient."""

    def count(module: torch.nn.Module, arguments: Any, output: Any) -> None:
        if type(module).__name__ in ENCODERS:
            counts["trained" if torch.is_grad_enabled() else "seen"] += len(output[0])

    handle = torch.nn.modules.module.register_module_forward_hook(count)
    try:
        yield
    finally:
        handle.remove()


def race(
    store: StudyStore, folder: Path, config: RunConfig, end_to_end: bool
) -> list[dict[str, Any]]:
    """Train both models and combine them; return one row for each, and one for the constant."""
    slices, rows = _train("slice", store, folder, config, None)
    sequence = replace(config, recipe="sequence")
    heads = sequence.override({"sequence": {"frozen": True}})
    sequences, more = _train("sequence", store, folder, heads, slices.model)
    rows += more
    if end_to_end:
        rows += _train("sequence, end to end", store, folder, sequence, None)[1]
    out = RunFolder(folder / f"blend-{config.seed}")
    blend(store, out, [slices, sequences])
    found = evaluate(store, out)
    rows.append(_row("ensemble", config.seed, found, {}))
    return [*rows, _row("constant", config.seed, found, {}, of=BEST)]


def _train(
    name: str, store: StudyStore, folder: Path, config: RunConfig, start: Path | None
) -> tuple[RunFolder, list[dict[str, Any]]]:
    """Train one model; return the run and its row."""
    run = RunFolder(folder / f"{name.replace(' ', '-')}-{config.seed}")
    counts = {"trained": 0, "seen": 0}
    began = time.monotonic()
    with counting(counts):
        boost(store, run, config, start)
    history = run.lines(HISTORY)
    more = {
        "accepted": f"{sum(line['accepted'] for line in history)} of {len(history)}",
        "steps": sum(line["steps"] for line in history),
        "slices trained": counts["trained"],
        "slices inferred": counts["seen"],
        "seconds": round(time.monotonic() - began),
    }
    return run, [_row(name, config.seed, evaluate(store, run), more)]


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
        "accepted": "",
        "steps": "",
        "slices trained": "",
        "slices inferred": "",
        "seconds": "",
        **more,
    }


def claim(rows: list[dict[str, Any]]) -> list[Claim]:
    """Make the claims: ratios of mean losses over the seeds."""

    def mean(name: str) -> float:
        return float(np.mean([row["loss"] for row in rows if row["model"] == name]))

    ratios = {
        "sequence / slice log loss": mean("sequence") / mean("slice"),
        "ensemble / best single log loss": mean("ensemble") / min(mean("sequence"), mean("slice")),
        "sequence / constant log loss": mean("sequence") / mean("constant"),
    }
    return [Claim(name, value, 1.0, "lower") for name, value in ratios.items()]


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--store", help="existing phantom store (default: make one)")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), metavar="S")
    parser.add_argument(
        "--end-to-end", action="store_true", help="add a sequence model trained end to end"
    )
    parser.add_argument(
        "--quick", action="store_true", help="tiny models and one seed, in under a minute"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    size = quick_size() if options.quick else full_size()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="cspine-models-") as place:
        store = StudyStore.open(options.store or make_store(Path(place), size))
        for seed in options.seeds[:1] if options.quick else options.seeds:
            rows += race(store, Path(place), replace(size.config, seed=seed), options.end_to_end)
    report(describe_machine(PACKAGES), rows, claim(rows), options.json)


if __name__ == "__main__":
    main()
