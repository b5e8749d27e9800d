"""The locked test: the run's model and its mixture beside the constants that they have to beat.

Figures come for each level, for all levels together and for the patient, with 95 % intervals by
bootstrap over patients, whose studies stay together. All constants but the last are known before
the test: one half, and what the training labels say. The last is fitted to the test labels
themselves, so no constant can do better there.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from sklearn.calibration import calibration_curve
from sklearn.metrics import precision_recall_curve, roc_curve

from presentation.progress import StageProgress
from storage_schemas.errors import UsageError
from storage_schemas.store import StudyStore
from storage_schemas.vertebrae import LABEL_COLUMNS
from training.config import RunConfig
from training.data.cohort import Study, label_table, labelled, read_cohort
from training.data.splits import Splits
from training.evaluation.predict import Predictions, predict_studies
from training.explanation.examples import ExampleCases
from training.metrics.competition import (
    best_constants,
    bootstrap_difference,
    class_prior,
    competition_loss,
    cross_entropy,
    exam_losses,
    exam_weights,
    target_losses,
)
from training.metrics.rank_metrics import SPECIFICITY, mean_figures, rank_figures
from training.rounds.cards import renew_card
from training.rounds.recipes import find_recipe
from training.rounds.validation import mean_by_patient
from training.runs import EVALUATION, SETTINGS, SPLITS, RunFolder

MODEL = "model"
HALF = "constant 0.5"
PRIOR = "class prior"
BEST = "best constant"
TEST_CONSTANT = "best for the test"
ENSEMBLE = "mixture of rounds"

GROUPS: Mapping[str, list[int]] = {
    **{target: [column] for column, target in enumerate(LABEL_COLUMNS)},
    "levels": list(range(1, len(LABEL_COLUMNS))),
}
"""Columns that are judged together: each target, and all levels."""
FIGURES: Mapping[str, str] = {
    "auc": "AUC",
    "average_precision": "average precision",
    "sensitivity": f"sensitivity at {SPECIFICITY:.0%} specificity",
    "brier": "Brier",
}
CURVES = (LABEL_COLUMNS[0], "levels")
RESAMPLES = 1000
"""Resamples of the patients."""
Floats = NDArray[np.float64]
Curve = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Evaluation:
    """How a run does on the locked test patients.

    Parameters
    ----------
    patients, studies, broken : int
        Of the test; broken are studies.
    losses : mapping
        For the model, the mixture and each constant the competition's loss, under ``all``, and that
        of each target alone.
    intervals : mapping
        For the model, the mixture and each constant the 95 % interval of each of `losses`.
    figures : mapping
        For the model and the mixture, for each of `GROUPS`, each of `FIGURES`: its value, and the
        low and high end of its 95 % interval; None where the test lacks one class.
    curves : mapping
        For the model and the mixture, for each of `CURVES`, the points of three curves.
        ``calibration``: mean probability and share of broken ones, in up to ten groups of as many
        exams. ``roc``: share of false alarms and sensitivity, and ``precision_recall``: sensitivity
        and precision, at every threshold; both None where the test lacks one class.
    sites : mapping
        For each scanner its studies, and the losses of the model and the best constant there.
    worst_site : str
        The one where the model's loss is highest.
    gain : float
        By how much the model's loss lies below that of the best constant.
    gain_interval : tuple of two floats
        Its 95 % interval.
    exams : tuple
        For each study its labels, its probabilities and its loss.
    """

    patients: int
    studies: int
    broken: int
    losses: Mapping[str, Mapping[str, float]]
    intervals: Mapping[str, Mapping[str, tuple[float, float]]]
    figures: Mapping[str, Mapping[str, Mapping[str, tuple[float, float, float] | None]]]
    curves: Mapping[str, Mapping[str, Mapping[str, Curve | None]]]
    sites: Mapping[str, Mapping[str, float]]
    worst_site: str
    gain: float
    gain_interval: tuple[float, float]
    exams: tuple[Mapping[str, Any], ...]

    @property
    def headline(self) -> str:
        """The line that says it all."""
        model, constant = self.losses[MODEL]["all"], self.losses[BEST]["all"]
        return f"locked test: model {model:.3f}, best constant {constant:.3f}"

    def rows(self) -> list[tuple[str, object]]:
        """What it comes to, for a table."""
        low, high = self.gain_interval
        return [
            ("locked test patients", self.patients),
            ("studies", self.studies),
            ("broken", self.broken),
            *((f"loss of the {name}", f"{self.losses[name]['all']:.3f}") for name in self.figures),
            ("loss of the best constant", f"{self.losses[BEST]['all']:.3f}"),
            ("below the best constant by", f"{self.gain:.3f}, 95 % {low:.3f} to {high:.3f}"),
        ]

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Evaluation":
        """Read what `evaluate` wrote; raises KeyError or TypeError on anything else."""
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
    examples = ExampleCases()
    with StageProgress("read test", crops, "crops") as progress:
        predictions = predict_studies(
            store, run, test, progress.advance, examples.observe, ensemble=True
        )
    examples.write(run)
    found = _compare(test, train, predictions, config.seed)
    run.write(EVALUATION, asdict(found))
    renew_card(run, find_recipe(config.recipe).kind)
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
    models = {MODEL: predictions.probabilities}
    if predictions.ensemble is not None:
        models[ENSEMBLE] = predictions.ensemble
    rivals: dict[str, Floats] = {
        **models,
        HALF: np.full(len(LABEL_COLUMNS), 0.5),
        PRIOR: class_prior(train_labels),
        BEST: best_constants(train_labels),
        TEST_CONSTANT: best_constants(labels),
    }
    ours, constant = (
        mean_by_patient(test, exam_losses(labels, rivals[name])) for name in (MODEL, BEST)
    )
    sites = _compare_sites(test, rivals)
    weights = _resample(test, seed)
    return Evaluation(
        patients=len({study.patient for study in test}),
        studies=len(test),
        broken=int(labels[:, 0].sum()),
        losses={
            name: {"all": competition_loss(labels, p), **target_losses(labels, p)}
            for name, p in rivals.items()
        },
        intervals={name: _loss_intervals(labels, p, weights) for name, p in rivals.items()},
        figures={name: _figures(labels, p, weights) for name, p in models.items()},
        curves={
            name: {
                group: _curves(labels[:, GROUPS[group]].ravel(), p[:, GROUPS[group]].ravel())
                for group in CURVES
            }
            for name, p in models.items()
        },
        sites=sites,
        worst_site=max(sites, key=lambda site: sites[site][MODEL]),
        gain=competition_loss(labels, rivals[BEST]) - competition_loss(labels, rivals[MODEL]),
        gain_interval=bootstrap_difference(constant, ours, seed=seed),
        exams=tuple(
            {"study": name, "labels": truth, "probabilities": p, "loss": loss}
            for name, truth, p, loss in zip(
                predictions.studies,
                labels.tolist(),
                predictions.probabilities.tolist(),
                exam_losses(labels, predictions.probabilities).tolist(),
                strict=True,
            )
        ),
    )


def _resample(test: tuple[Study, ...], seed: int) -> Floats:
    """How often each exam is in each resample of the patients; in the first one, once each."""
    names, place = np.unique([study.patient for study in test], return_inverse=True)
    picks = np.random.default_rng(seed).multinomial(
        len(names), [1 / len(names)] * len(names), RESAMPLES
    )
    return np.vstack([np.ones(len(names)), picks])[:, place].astype(np.float64)


def _figures(
    labels: NDArray[np.int64], probabilities: Floats, weights: Floats
) -> dict[str, dict[str, tuple[float, float, float] | None]]:
    found: dict[str, dict[str, tuple[float, float, float] | None]] = {}
    for group, columns in GROUPS.items():
        truth, p = labels[:, columns].ravel(), probabilities[:, columns].ravel()
        many = np.repeat(weights, len(columns), axis=1)
        sampled = rank_figures(truth, p, many) | mean_figures(truth, p, many)
        found[group] = {name: _interval(sampled[name]) for name in FIGURES}
    return found


def _interval(sampled: Floats) -> tuple[float, float, float] | None:
    """The value itself, and the 95 % interval of the resamples that have one."""
    if np.isnan(sampled[0]):
        return None
    return float(sampled[0]), *_quantiles(sampled)


def _loss_intervals(
    labels: NDArray[np.int64], probabilities: Floats, weights: Floats
) -> dict[str, tuple[float, float]]:
    """The 95 % interval of the competition's loss and of each target's, over the resamples."""
    exams = exam_weights(labels)
    losses = exams * cross_entropy(labels, probabilities)
    sampled = {"all": weights @ losses.sum(axis=1) / weights.sum(axis=1)}
    each = (weights @ losses) / (weights @ exams)
    sampled |= dict(zip(LABEL_COLUMNS, each.T, strict=True))
    return {name: _quantiles(values) for name, values in sampled.items()}


def _quantiles(sampled: Floats) -> tuple[float, float]:
    low, high = np.nanquantile(sampled[1:], [0.025, 0.975])
    return float(low), float(high)


def _curves(labels: NDArray[np.int64], probabilities: Floats) -> dict[str, Curve | None]:
    observed, said = calibration_curve(labels, probabilities, n_bins=10, strategy="quantile")
    found: dict[str, Curve | None] = {"calibration": _points(said, observed)}
    if labels.min() == labels.max():
        return found | {"roc": None, "precision_recall": None}
    false_alarms, sensitivity, _ = roc_curve(labels, probabilities)
    precision, recall, _ = precision_recall_curve(labels, probabilities, drop_intermediate=True)
    return found | {
        "roc": _points(false_alarms, sensitivity),
        "precision_recall": _points(recall, precision),
    }


def _points(x: Floats, y: Floats) -> Curve:
    return tuple(zip(x.tolist(), y.tolist(), strict=True))


def _compare_sites(
    test: tuple[Study, ...], rivals: Mapping[str, Floats]
) -> dict[str, dict[str, float]]:
    labels = label_table(test)
    losses = {name: exam_losses(labels, rivals[name]) for name in (MODEL, BEST)}
    scanners = np.array([study.scanner or "unknown" for study in test])
    return {
        str(site): {
            "studies": int((scanners == site).sum()),
            **{name: float(each[scanners == site].mean()) for name, each in losses.items()},
        }
        for site in np.unique(scanners)
    }


def show(evaluation: Evaluation) -> list[Table]:
    """Losses, figures and sites as tables for a terminal."""
    losses = _table(
        f"Loss on {evaluation.patients} locked test patients, {evaluation.broken} of"
        f" {evaluation.studies} studies broken",
        ("all", *LABEL_COLUMNS),
    )
    for name, each in evaluation.losses.items():
        losses.add_row(name, *(f"{loss:.3f}" for loss in each.values()))
    tables = [losses]
    for name, groups in evaluation.figures.items():
        figures = _table(f"Figures of the {name}, and their 95 % intervals", FIGURES.values())
        for group, values in groups.items():
            figures.add_row(
                group.removeprefix("patient_"),
                *("-" if v is None else f"{v[0]:.3f} ({v[1]:.3f} to {v[2]:.3f})"
                  for v in values.values()),
            )  # fmt: skip
        tables.append(figures)
    sites = _table(f"Loss by site, the worst one {evaluation.worst_site}", ("studies", MODEL, BEST))
    for site, each in evaluation.sites.items():
        sites.add_row(site, str(each["studies"]), f"{each[MODEL]:.3f}", f"{each[BEST]:.3f}")
    return [*tables, sites]


def _table(title: str, columns: Iterable[str]) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 0, 0, 1))
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column.removeprefix("patient_"), justify="right", no_wrap=True)
    return table
