"""Several runs as one: folds of one recipe, or runs of any recipes under convex weights.

Members are weighed on patients that none of them trained on: those on whom a run's probabilities
were fitted, or, of a run in folds, all patients but the locked ones, each by the model of the fold
that held it out. What the members say of them stands in the runs already, so nothing is predicted
here. The locked test patients are the same in all runs, and are not looked at.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from storage_schemas.errors import UsageError
from storage_schemas.store import StudyStore
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
"""A run of a smaller weight is left out: it costs whole predictions."""
FEWEST = 8
"""Patients without whom no weights are fitted."""


@dataclass(frozen=True)
class RunEnsemble:
    """A mixture of runs.

    Parameters
    ----------
    names : tuple of str
        The runs' folders, by name alone.
    weights : tuple of float
        Of the runs; at least 0, together 1.
    losses : tuple of float
        Of each run alone, on the patients that fitted the weights.
    loss : float
        Of the mixture, on the same.
    studies : int
        That fitted the weights.
    """

    names: tuple[str, ...]
    weights: tuple[float, ...]
    losses: tuple[float, ...]
    loss: float
    studies: int


def blend(store: StudyStore, out: RunFolder, runs: Sequence[RunFolder]) -> RunEnsemble:
    """Weigh runs by patients that none of them trained on, and copy their models into OUT.

    Parameters
    ----------
    store : StudyStore
        For the labels.
    out : RunFolder
        A folder that is not there yet, or holds a blend.
    runs : sequence of RunFolder
        Two or more, plain ones or in folds, with the same locked test patients.

    Raises
    ------
    UsageError
        ``config-invalid`` where a run is not finished, or the runs have other test patients or too
        few known ones in common; ``labels-missing``.
    RunError
        ``run-unwritable``.
    """
    if len(runs) < 2:
        raise UsageError("config-invalid", "a blend is of two runs or more")
    if out.path.exists() and not out.has(RUN_ENSEMBLE) and any(out.path.iterdir()):
        raise UsageError("config-invalid", "OUT holds something else", key=str(out.path))
    splits = [Splits.from_json(run.read(SPLITS)) for run in runs]
    for run, split in zip(runs, splits, strict=True):
        if set(split.test) != set(splits[0].test):
            reason = "its locked test patients are not those of the first run: use one --seed"
            raise UsageError("config-invalid", reason, key=str(run.path))
    studies = labelled(read_cohort(store), store.url)
    known = [held_out_predictions(run, studies) for run in runs]
    common = [study for study in studies if all(study.study in each for each in known)]
    labels = label_table(common) if common else np.zeros((0, 8), np.int64)
    if len(common) < FEWEST or labels[:, 0].min() == labels[:, 0].max():
        reason = f"{len(common)} studies are unseen by all runs, broken and whole ones are needed"
        raise UsageError("cohort-too-small", reason, key=str(out.path))
    tables = [np.stack([each[study.study] for study in common]) for each in known]
    weights = weigh_runs(labels, tables, [study.patient for study in common])
    found = RunEnsemble(
        names=tuple(run.path.name for run in runs),
        weights=tuple(weights.tolist()),
        losses=tuple(competition_loss(labels, table) for table in tables),
        loss=competition_loss(labels, average_predictions(weights.tolist(), tables)),
        studies=len(common),
    )
    _write(out, runs, found, _held_by_all(splits))
    return found


def weigh_runs(
    labels: NDArray[np.int64], tables: Sequence[Floats], patients: Sequence[str]
) -> Floats:
    """Convex weights, as the mean of those that fit resamples of the patients best.

    The weights of least loss on a dozen patients choose one run of several that are as good; their
    mean over resamples (Breiman, Bagging Predictors, 1996) shares where the patients cannot tell.

    Parameters
    ----------
    labels : ndarray, shape (studies, 8)
    tables : sequence of ndarray, shape (studies, 8)
        What each run says.
    patients : sequence of str
        Of each study; a patient's studies stay together.

    Returns
    -------
    ndarray, shape (runs,)
    """
    names, place = np.unique(patients, return_inverse=True)
    random = np.random.default_rng(0)
    total = np.zeros(len(tables))
    for _ in range(_RESAMPLES):
        sampled = random.integers(0, len(names), len(names))
        rows = np.concatenate([np.flatnonzero(place == patient) for patient in sampled])
        total += fit_weights(labels[rows], [table[rows] for table in tables])
    total[total < _ENOUGH * total.sum()] = 0
    return cast(Floats, total / total.sum())


def _held_by_all(splits: Sequence[Splits]) -> Splits:
    """What any run trained on is trained on; the rest of the held-out patients calibrates."""
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
