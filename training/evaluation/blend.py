"""Weighted ensembles of runs.

Weights are fitted on patients that no member was trained on: the calibration patients of a plain
run, or all but the test patients of a cross-validated run, each predicted by the fold that held it
out. These predictions are stored in the runs, so no model is run here. All runs must share the
locked test patients, which are not used.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from storage_schemas.errors import UsageError
from storage_schemas.store import StudyStore
from storage_schemas.targets import Targets
from training.data.cohort import label_table, labelled, read_cohort
from training.data.splits import Splits
from training.durable import write_folder
from training.evaluation.members import read_members
from training.metrics.competition import competition_loss
from training.metrics.ensemble import average_predictions, fit_weights
from training.rounds.cards import write_blend_card
from training.rounds.folds import held_out_predictions
from training.runs import EVALUATION, RUN_ENSEMBLE, SETTINGS, SPLITS, RunFolder

Floats = NDArray[np.float64]
_RESAMPLES = 50
_ENOUGH = 0.05
"""Smallest weight of a run; runs below it are dropped, to save their predictions."""
FEWEST = 8
"""Smallest number of patients that weights are fitted on."""


@dataclass(frozen=True)
class RunEnsemble:
    """A weighted ensemble of runs.

    Parameters
    ----------
    names : tuple of str
        Folder names of the runs.
    weights : tuple of float
        Weight of each run; non-negative, with sum 1.
    losses : tuple of float
        Loss of each run on the patients that the weights were fitted on.
    loss : float
        Loss of the ensemble on the same patients.
    studies : int
        Number of studies that the weights were fitted on.
    """

    names: tuple[str, ...]
    weights: tuple[float, ...]
    losses: tuple[float, ...]
    loss: float
    studies: int


def blend(store: StudyStore, out: RunFolder, runs: Sequence[RunFolder]) -> RunEnsemble:
    """Fit ensemble weights on patients that no run was trained on, and copy the models into `out`.

    Parameters
    ----------
    store : StudyStore
        Store that the labels are read from.
    out : RunFolder
        New folder, or one that holds an ensemble of runs.
    runs : sequence of RunFolder
        Two or more plain or cross-validated runs with the same test patients.

    Raises
    ------
    UsageError
        ``config-invalid`` if a run is not finished or the test patients differ;
        ``cohort-too-small`` if the runs share too few held-out patients; ``labels-missing``.
    RunError
        ``run-unwritable``.
    """
    if len(runs) < 2:
        raise UsageError("config-invalid", "an ensemble needs at least two runs")
    if out.path.exists() and not out.has(RUN_ENSEMBLE) and any(out.path.iterdir()):
        raise UsageError(
            "config-invalid", "OUT is not empty and holds no ensemble", key=str(out.path)
        )
    splits = [Splits.from_json(run.read(SPLITS)) for run in runs]
    for run, split in zip(runs, splits, strict=True):
        if set(split.test) != set(splits[0].test):
            reason = "its test patients differ from those of the first run: use the same --seed"
            raise UsageError("config-invalid", reason, key=str(run.path))
    targets = runs[0].targets()
    for run in runs:
        if run.targets() != targets:
            reason = "its targets differ from those of the first run"
            raise UsageError("config-invalid", reason, key=str(run.path))
    studies = labelled(read_cohort(store, targets), store.url)
    known = [held_out_predictions(run, studies) for run in runs]
    common = [study for study in studies if all(study.study in each for each in known)]
    labels = label_table(common) if common else np.zeros((0, len(targets)))
    if len(common) < FEWEST or not {0, 1} <= set(labels[:, 0].tolist()):
        reason = (
            f"{len(common)} studies are held out by all runs; {FEWEST} or more are needed, with"
            " and without fractures"
        )
        raise UsageError("cohort-too-small", reason, key=str(out.path))
    tables = [np.stack([each[study.study] for study in common]) for each in known]
    weights = weigh_runs(labels, tables, [study.patient for study in common], targets)
    found = RunEnsemble(
        names=tuple(run.path.name for run in runs),
        weights=tuple(weights.tolist()),
        losses=tuple(competition_loss(labels, table, targets) for table in tables),
        loss=competition_loss(labels, average_predictions(weights.tolist(), tables), targets),
        studies=len(common),
    )
    _write(out, runs, found, _held_by_all(splits))
    return found


def weigh_runs(
    labels: Floats,
    tables: Sequence[Floats],
    patients: Sequence[str],
    targets: Targets,
) -> Floats:
    """Fit non-negative weights with sum 1, averaged over bootstrap resamples of the patients.

    On few patients the optimal weights select one of several equally good runs; averaging over
    resamples distributes the weight among them (Breiman, Bagging Predictors, 1996).

    Parameters
    ----------
    labels : ndarray, shape (studies, targets)
        Labels of the studies: 0 or 1, NaN where unknown.
    tables : sequence of ndarray, shape (studies, targets)
        Probabilities of each run.
    patients : sequence of str
        Patient of each study; the studies of a patient are resampled together.
    targets : Targets
        Names and weights of the columns.

    Returns
    -------
    ndarray, shape (runs,)
        Weight of each run.
    """
    names, place = np.unique(patients, return_inverse=True)
    random = np.random.default_rng(0)
    total = np.zeros(len(tables))
    for _ in range(_RESAMPLES):
        sampled = random.integers(0, len(names), len(names))
        rows = np.concatenate([np.flatnonzero(place == patient) for patient in sampled])
        total += fit_weights(labels[rows], [table[rows] for table in tables], targets)
    total[total < _ENOUGH * total.sum()] = 0
    return cast(Floats, total / total.sum())


def _held_by_all(splits: Sequence[Splits]) -> Splits:
    """Splits of an ensemble: patients that any run was trained on are training patients."""
    train = set[str]().union(*(split.train for split in splits))
    held = {p for split in splits for p in (*split.guard, *split.calibration)} - train
    return Splits(tuple(sorted(train)), (), tuple(sorted(held)), splits[0].test)


def _write(out: RunFolder, runs: Sequence[RunFolder], found: RunEnsemble, splits: Splits) -> None:
    out.create()
    members: list[Mapping[str, Any]] = []
    with write_folder(out.path / "members") as partial:
        for run, weight in zip(runs, found.weights, strict=True):
            for member in read_members(run) if weight else ():
                name = f"{len(members) + 1:02}"
                shutil.copytree(member.folder, partial / name)
                folder, share = f"members/{name}", weight * member.weight
                members.append({"folder": folder, "weight": share, "run": run.path.name})
    out.write(SETTINGS, runs[int(np.argmax(found.weights))].read(SETTINGS))
    out.write(SPLITS, splits.to_json())
    out.write(RUN_ENSEMBLE, {"members": members, "fitted": asdict(found)})
    (out.path / EVALUATION).unlink(missing_ok=True)
    write_blend_card(out)
