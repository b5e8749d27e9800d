"""The locked test: the run's model beside the constants that it has to beat.

All constants but the last are known before the test: one half, and what the training labels say.
The last is fitted to the test labels themselves, so no constant can do better there.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from storage_schemas.errors import UsageError
from storage_schemas.store import StudyStore
from storage_schemas.vertebrae import LABEL_COLUMNS
from training.cohort import Study, label_table, labelled, read_cohort
from training.config import RunConfig
from training.examples import ExampleTiles
from training.metric import (
    area_under_curve,
    best_constants,
    bootstrap_difference,
    class_prior,
    competition_loss,
    exam_losses,
    target_losses,
)
from training.predict import Predictions, predict_studies
from training.progress import StageProgress
from training.runs import EVALUATION, SETTINGS, SPLITS, RunFolder
from training.splits import Splits

MODEL = "model"
HALF = "constant 0.5"
PRIOR = "class prior"
BEST = "best constant"
HARDEST = "best for the test"


@dataclass(frozen=True)
class Evaluation:
    """How a run does on the locked test patients.

    Parameters
    ----------
    patients, studies, broken : int
        Of the test; broken are studies.
    losses : mapping
        For the model and each constant the competition's loss, under ``all``, and that of each
        target alone.
    auc : mapping
        The model's area under the ROC curve, for each target; None where one class is missing.
    gain : float
        By how much the model's loss lies below that of the best constant.
    gain_interval : tuple of two floats
        Its 95 % interval, by bootstrap over patients.
    exams : tuple
        For each study its labels and probabilities.
    """

    patients: int
    studies: int
    broken: int
    losses: Mapping[str, Mapping[str, float]]
    auc: Mapping[str, float | None]
    gain: float
    gain_interval: tuple[float, float]
    exams: tuple[Mapping[str, Any], ...]

    @property
    def verdict(self) -> str:
        """The line that says it all."""
        model, constant = self.losses[MODEL]["all"], self.losses[BEST]["all"]
        return f"locked test: model {model:.3f}, best constant {constant:.3f}"

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Evaluation":
        """Read what `evaluate` wrote; raises TypeError on anything else."""
        low, high = document["gain_interval"]
        return cls(**{**document, "gain_interval": (low, high), "exams": tuple(document["exams"])})


def evaluate(store: StudyStore, run: RunFolder) -> Evaluation:
    """Score a run on its locked test patients, and write that into its folder.

    Raises
    ------
    UsageError
        ``config-invalid`` where RUN holds no finished run; ``labels-missing`` where STORE lacks one
        of its patients, or its labels.
    StoreError
        Of a shard that is missing or damaged.
    """
    config = RunConfig.from_json(run.read(SETTINGS)["config"])
    splits = Splits.from_json(run.read(SPLITS))
    studies = labelled(read_cohort(store), store.url)
    test, train = _chosen(studies, splits, "test", store), _chosen(studies, splits, "train", store)
    crops = sum(len(study.vertebrae) for study in test)
    examples = ExampleTiles(config.inputs)
    with StageProgress("read test", crops, "crops") as progress:
        predictions = predict_studies(store, run, test, progress.advance, examples.look)
    examples.write(run)
    found = _compare(test, train, predictions, config.seed)
    run.write(EVALUATION, asdict(found))
    return found


def _chosen(
    studies: tuple[Study, ...], splits: Splits, side: str, store: StudyStore
) -> tuple[Study, ...]:
    chosen = splits.choose(studies, side)
    wanted = set(getattr(splits, side))
    if missing := wanted - {study.patient for study in chosen}:
        raise UsageError(
            "labels-missing",
            f"{len(missing)} of the run's {len(wanted)} {side} patients are not there",
            key=store.url,
        )
    return chosen


def _compare(
    test: tuple[Study, ...], train: tuple[Study, ...], predictions: Predictions, seed: int
) -> Evaluation:
    labels, train_labels = label_table(test), label_table(train)
    rivals: dict[str, NDArray[np.float64]] = {
        MODEL: predictions.probabilities,
        HALF: np.full(len(LABEL_COLUMNS), 0.5),
        PRIOR: class_prior(train_labels),
        BEST: best_constants(train_labels),
        HARDEST: best_constants(labels),
    }
    patients = [study.patient for study in test]
    ours, constant = (
        _by_patient(patients, exam_losses(labels, rivals[name])) for name in (MODEL, BEST)
    )
    areas = [
        area_under_curve(labels[:, i], predictions.probabilities[:, i])
        for i in range(len(LABEL_COLUMNS))
    ]
    low, high = bootstrap_difference(constant, ours, seed=seed)
    return Evaluation(
        patients=len(set(patients)),
        studies=len(test),
        broken=int(labels[:, 0].sum()),
        losses={
            name: {"all": competition_loss(labels, p), **target_losses(labels, p)}
            for name, p in rivals.items()
        },
        auc={
            target: None if np.isnan(area) else area
            for target, area in zip(LABEL_COLUMNS, areas, strict=True)
        },
        gain=competition_loss(labels, rivals[BEST]) - competition_loss(labels, rivals[MODEL]),
        gain_interval=(low, high),
        exams=tuple(
            {"study": name, "labels": truth, "probabilities": p}
            for name, truth, p in zip(
                predictions.studies,
                labels.tolist(),
                predictions.probabilities.tolist(),
                strict=True,
            )
        ),
    )


def _by_patient(patients: list[str], losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean loss of each patient's studies, shape (patients,)."""
    names, place = np.unique(patients, return_inverse=True)
    return np.bincount(place, losses) / np.bincount(place, minlength=len(names))


def show(evaluation: Evaluation) -> Table:
    """The losses as a table for a terminal, the model first."""
    table = Table(
        title=f"Loss on {evaluation.patients} locked test patients, {evaluation.broken} of"
        f" {evaluation.studies} studies broken",
        title_justify="left",
        box=None,
        padding=(0, 0, 0, 1),
    )
    table.add_column("", no_wrap=True)
    for column in ("all", *LABEL_COLUMNS):
        table.add_column(column.removeprefix("patient_"), justify="right", no_wrap=True)
    for name, losses in evaluation.losses.items():
        table.add_row(name, *(f"{loss:.3f}" for loss in losses.values()))
    areas = ("-" if area is None else f"{area:.3f}" for area in evaluation.auc.values())
    table.add_row("AUC, model", "", *areas)
    return table
