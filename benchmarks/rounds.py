"""Boosting rounds beside plain continuation, joint training and a constant.

On a phantom cohort of different hospitals (see `site_cohort`), the same small ViT, pretrained on
fractures of other patients, is trained by each recipe with the same number of optimizer steps: once
with hospitals arriving one after another, which is the hard case, and once shuffled. The score is
the competition's loss on test patients; the gap is the difference between `seed` and `joint`.

    python benchmarks/rounds.py --ablate
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
from claims import Claim, describe_machine, report
from site_cohort import ELSEWHERE, HOSPITALS, make_site_store

from pipeline.cores import available_cores
from training.config import (
    BoostConfig,
    InputConfig,
    ModelConfig,
    Order,
    RunConfig,
    SplitConfig,
    TrainConfig,
)

PACKAGES = ("torch", "transformers", "accelerate", "numpy")
COHORT_SEED = 14
SHAPE = {"size": 80, "slices": 44}
BASE = RunConfig(
    split=SplitConfig(guard=0.165, calibration=0.1, test=0.465),
    inputs=InputConfig(size=32, crop_mm=56.0),
    model=ModelConfig(patch=4, width=64, depth=3, heads=2),
    train=TrainConfig(
        epochs=16.0,
        learning_rate=1.5e-3,
        fractured_share=0.4,
        box_weight=0.5,
        slices_per_round=1400,
    ),
)
"""Settings of all runs; `joint` gains little from more epochs."""
START_EPOCHS = 30.0
"""Epochs of the pretraining, long enough to pass the steep part of the loss curve."""
FULL = BoostConfig(replay=0.75, rate_fall=1.0, layer_decay=1.0, caution=0.0)
"""Complete boosting settings: constant peak rates, since a small model that still improves needs no
protection, and caution 0, since a hundred guard patients cannot prove small gains one by one."""
ABLATIONS: Mapping[str, BoostConfig] = {
    "boost without replay": replace(FULL, replay=0.0),
    "boost without interpolation": replace(FULL, step_lengths=()),
    "boost without EMA": replace(FULL, ema_window=0.0),
    "boost without the guard": replace(FULL, guarded=False),
    "boost, caution 1": replace(FULL, caution=1.0),
}


@dataclass(frozen=True)
class Job:
    """One run.

    Parameters
    ----------
    name : str
        Name in the table.
    recipe : str
        Recipe of the run.
    order : str
        Whether hospitals arrive shuffled or one by one.
    seed : int
        Seed of the splits, the weights, the order of the hospitals and the sampling.
    policy : BoostConfig
        Boosting settings of the run.
    epochs : float
        Epochs per round.
    """

    name: str
    recipe: str
    order: Order
    seed: int
    policy: BoostConfig = FULL
    epochs: float = BASE.train.epochs


def run_job(job: Job, store: str, start: Path | None, folder: str, quick: bool) -> dict[str, Any]:
    """Train one run from the model in `start` and evaluate it; return its row of the table."""
    import torch

    from storage_schemas.store import StudyStore
    from training.cli import quiet_libraries
    from training.evaluation.evaluate import BEST, ENSEMBLE, MODEL, evaluate
    from training.rounds.boosting import boost
    from training.runs import HISTORY, RunFolder

    quiet_libraries()
    torch.set_num_threads(1)
    sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
    run = RunFolder(Path(folder) / f"{job.name} {job.order} {job.seed}".replace(" ", "-"))
    config = replace(BASE, recipe=job.recipe, seed=job.seed, boost=job.policy)
    config = config.override({"train": {"order": job.order, "epochs": job.epochs}})
    if quick:
        config = config.override({"train": {"epochs": 1.5, "slices_per_round": 400}})
    opened = StudyStore.open(store)
    boost(opened, run, config, start)
    found = evaluate(opened, run)
    history = run.lines(HISTORY)
    guard = [line["guard_loss"] for line in history]
    return {
        "order": job.order,
        "seed": job.seed,
        "recipe": job.name,
        "rounds": len(history),
        "accepted": sum(line["accepted"] for line in history),
        "steps": sum(line["steps"] for line in history),
        "guard increases": sum(b > a for a, b in pairwise(guard)),
        "guard": guard[-1],
        "test": found.losses[MODEL]["all"],
        "ensemble": found.losses[ENSEMBLE]["all"] if ENSEMBLE in found.losses else None,
        "constant": found.losses[BEST]["all"],
        "AUC": found.figures[MODEL]["levels"]["auc"][0],  # type: ignore[index]
        "worst hospital": found.sites[found.worst_site][MODEL],
    }


def pretrain(root: Path, patients: int, quick: bool) -> Path:
    """Pretrain a model on patients of another hospital; return its folder."""
    store = make_site_store(root, patients, seed=COHORT_SEED + 1, hospitals=ELSEWHERE, **SHAPE)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as pool:
        job = Job("start", "joint", "shuffled", 0, epochs=START_EPOCHS)
        pool.submit(run_job, job, store, None, str(root), quick).result()
    return root / "start-shuffled-0" / "model"


def plan_jobs(seeds: Sequence[int], orders: Sequence[Order], ablate: bool) -> list[Job]:
    """List all runs; those of the claims come first."""
    jobs = []
    for seed in seeds:
        for order in orders:
            recipes: tuple[str, ...] = ("boost", "seed")
            if order == orders[0]:  # a single round has no order
                recipes += ("joint",)
            jobs += [Job(recipe, recipe, order, seed) for recipe in recipes]
    if ablate:
        jobs += [Job(n, "boost", "site", seed, to) for seed in seeds for n, to in ABLATIONS.items()]
    return jobs


def make_claims(rows: Sequence[Mapping[str, Any]]) -> list[Claim]:
    """Make the claims about the boosted runs."""
    tests = {(row["recipe"], row["order"], row["seed"]): row["test"] for row in rows}
    seeds = sorted({row["seed"] for row in rows})
    hard = [
        {recipe: tests[recipe, "site", seed] for recipe in ("boost", "seed", "joint")}
        for seed in seeds
    ]
    closed = [(one["seed"] - one["boost"]) / (one["seed"] - one["joint"]) for one in hard]
    return [
        Claim(
            "guard loss rises",
            sum(row["guard increases"] for row in rows if row["recipe"] == "boost"),
            0,
            "lower",
        ),
        Claim("gap closed", float(np.mean(closed)), 0.8),
        Claim("boost better than seed", float(np.mean([o["boost"] < o["seed"] for o in hard])), 1),
    ]


def summarise(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Average over the seeds, as rows of the same table."""
    found = []
    for order, recipe in dict.fromkeys((row["order"], row["recipe"]) for row in rows):
        mine = [r for r in rows if (r["order"], r["recipe"]) == (order, recipe)]
        mean = {
            name: float(np.mean([row[name] for row in mine])) if mine[0][name] is not None else None
            for name in mine[0]
            if name not in ("order", "recipe", "seed")
        }
        found.append({"order": order, "seed": "mean", "recipe": recipe, **mean})
    return found


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="use one seed and a small cohort")
    parser.add_argument(
        "--ablate", action="store_true", help="add an ablation of each part of boost"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--orders", nargs="+", choices=get_args(Order), default=["site", "shuffled"]
    )
    parser.add_argument("--patients", type=int, default=640)
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="keep all output in this folder"
    )
    parser.add_argument("--workers", type=int, default=available_cores())
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    seeds = [0] if options.quick else list(range(options.seeds))
    orders: list[Order] = ["site"] if options.quick else options.orders
    patients, elsewhere = (50, 40) if options.quick else (options.patients, 150)
    with tempfile.TemporaryDirectory() as scratch:
        root = options.keep or Path(scratch)
        os.environ["OMP_NUM_THREADS"] = "1"
        start = pretrain(root / "elsewhere", elsewhere, options.quick)
        store = make_site_store(root, patients, seed=COHORT_SEED, **SHAPE)
        jobs = plan_jobs(seeds, orders, options.ablate)
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(options.workers, context) as pool:
            futures = [
                pool.submit(run_job, job, store, start, str(root), options.quick) for job in jobs
            ]
            rows = [future.result() for future in futures]
    rows.sort(key=lambda row: (row["order"], row["seed"]))
    machine = describe_machine(PACKAGES) | {"hospitals": len(HOSPITALS), "patients": patients}
    report(machine, rows + summarise(rows), make_claims(rows), options.json)


if __name__ == "__main__":
    main()
