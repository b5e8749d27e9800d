"""Test-set evaluation of a run's model and its ensemble, beside constant baselines.

Metrics are computed for each level, for all levels pooled and for the patient, with 95 % confidence
intervals by bootstrap over patients. Only known labels count. Baselines are the constant 0.5, the
class prior and the best constants of the training labels; the best constants of the test labels are
the lower bound of any constant.
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
from storage_schemas.targets import Targets
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
    exam_losses,
    exam_weights,
    target_losses,
    weighted_losses,
)
from training.metrics.rank_metrics import SPECIFICITY, brier_score, rank_metrics
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
_TITLES = {TEST_CONSTANT: "best constant of the test labels", ENSEMBLE: "ensemble of rounds"}
"""Displayed names of models and baselines, where they differ from the key in evaluation.json."""

LEVELS = "levels"
"""Name of the metrics of all levels pooled, beside those of each target."""
METRIC_TITLES: Mapping[str, str] = {
    "auc": "AUC",
    "average_precision": "average precision",
    "sensitivity": f"sensitivity at {SPECIFICITY:.0%} specificity",
    "brier": "Brier",
}
RESAMPLES = 1000
"""Number of bootstrap resamples of the patients."""
Floats = NDArray[np.float64]
Curve = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Evaluation:
    """The test-set evaluation of a run.

    Parameters
    ----------
    patients : int
        Number of test patients.
    studies : int
        Number of test studies.
    broken : int
        Number of test studies with a fracture.
    losses : mapping
        For the model, the ensemble and each baseline: the competition's loss under ``all``, and the
        loss of each target, None if no test study has a known label for it.
    intervals : mapping
        For the model, the ensemble and each baseline: 95 % interval of each entry of `losses`; None
        where the loss is None.
    figures : mapping
        For the model and the ensemble, by target (and `LEVELS`) and metric: value, and lower and
        upper end of its 95 % interval; None if the test set lacks one class, or any known label.
    curves : mapping
        For the model and the ensemble, for the patient and `LEVELS`: points of three curves.
        ``calibration`` holds mean predicted probability and observed fracture rate in up to ten
        quantile bins; ``roc`` holds 1 - specificity and sensitivity, ``precision_recall``
        sensitivity and precision, at every threshold. The last two are None if the test set lacks
        one class, all three if it has no known label.
    sites : mapping
        For each scanner: number of studies, and loss of the model and of the best constant.
    worst_site : str
        Scanner with the highest loss of the model.
    gain : float
        Loss of the best constant minus the loss of the model.
    gain_interval : tuple of two floats
        95 % interval of `gain`.
    exams : tuple
        Labels (None where unknown), probabilities and loss of each study.
    """

    patients: int
    studies: int
    broken: int
    losses: Mapping[str, Mapping[str, float | None]]
    intervals: Mapping[str, Mapping[str, tuple[float, float] | None]]
    figures: Mapping[str, Mapping[str, Mapping[str, tuple[float, float, float] | None]]]
    curves: Mapping[str, Mapping[str, Mapping[str, Curve | None]]]
    sites: Mapping[str, Mapping[str, float]]
    worst_site: str
    gain: float
    gain_interval: tuple[float, float]
    exams: tuple[Mapping[str, Any], ...]

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the targets, in the order of the exams' labels and probabilities."""
        return tuple(name for name in self.losses[MODEL] if name != "all")

    @property
    def known(self) -> dict[str, int]:
        """Number of known labels of the test studies: of each target, and of `LEVELS` pooled."""
        columns = zip(*(exam["labels"] for exam in self.exams), strict=True)
        counts = [sum(label is not None for label in column) for column in columns]
        return {**dict(zip(self.targets, counts, strict=True)), LEVELS: sum(counts[1:])}

    @property
    def headline(self) -> str:
        """One line with the losses of the model and of the best constant."""
        model, constant = self.losses[MODEL]["all"], self.losses[BEST]["all"]
        return f"locked test: model {model:.3f}, best constant {constant:.3f}"

    def rows(self) -> list[tuple[str, object]]:
        """Return the summary as table rows."""
        low, high = self.gain_interval
        return [
            ("test patients", self.patients),
            ("test studies", self.studies),
            ("studies with a fracture", self.broken),
            *((("unknown labels", unknown),) if (unknown := self._unknown) else ()),
            *((f"loss, {title(name)}", f"{self.losses[name]['all']:.3f}") for name in self.figures),
            ("loss, best constant", f"{self.losses[BEST]['all']:.3f}"),
            ("gain over the best constant", f"{self.gain:.3f} (95 % CI {low:.3f} to {high:.3f})"),
        ]

    @property
    def _unknown(self) -> int:
        return sum(label is None for exam in self.exams for label in exam["labels"])

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Evaluation":
        """Read the output of `evaluate`; raises KeyError or TypeError otherwise."""
        low, high = document["gain_interval"]
        return cls(**{**document, "gain_interval": (low, high), "exams": tuple(document["exams"])})


def title(name: str) -> str:
    """Return the displayed name of a model or baseline in `Evaluation.losses`."""
    return _TITLES.get(name, name)


def evaluate(store: StudyStore, run: RunFolder) -> Evaluation:
    """Evaluate a run on its test patients and save the evaluation in its folder.

    Parameters
    ----------
    store : StudyStore
        Store that holds the test and the training patients.
    run : RunFolder
        Finished run, or an ensemble of runs.

    Raises
    ------
    UsageError
        ``config-invalid`` if RUN holds no finished run; ``labels-missing`` if STORE lacks a patient
        of the run, or its labels.
    StoreError
        ``array-missing`` or ``array-damaged`` if a shard cannot be read.
    """
    config = RunConfig.from_json(run.read(SETTINGS)["config"])
    splits = Splits.from_json(run.read(SPLITS))
    targets = run.targets()
    studies = labelled(read_cohort(store, targets), store.url)
    test, train = _chosen(studies, splits, "test", store), _chosen(studies, splits, "train", store)
    crops = sum(len(study.vertebrae) for study in test)
    examples = ExampleCases()
    with StageProgress("read test", crops, "crops") as progress:
        predictions = predict_studies(
            store, run, test, progress.advance, examples.observe, ensemble=True
        )
    examples.write(run)
    found = _compare(test, train, predictions, targets, config.seed)
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
            f"STORE lacks {len(missing)} of the run's {len(wanted)} {side} patients",
            key=store.url,
        )
    return chosen


def _compare(
    test: tuple[Study, ...],
    train: tuple[Study, ...],
    predictions: Predictions,
    targets: Targets,
    seed: int,
) -> Evaluation:
    labels, train_labels = label_table(test), label_table(train)
    models = {MODEL: predictions.probabilities}
    if predictions.ensemble is not None:
        models[ENSEMBLE] = predictions.ensemble
    predictors: dict[str, Floats] = {
        **models,
        HALF: np.full(len(targets), 0.5),
        PRIOR: class_prior(train_labels),
        BEST: best_constants(train_labels, targets),
        TEST_CONSTANT: best_constants(labels, targets),
    }
    model_losses, constant = (
        mean_by_patient(test, exam_losses(labels, predictors[name], targets))
        for name in (MODEL, BEST)
    )
    losses = {name: competition_loss(labels, p, targets) for name, p in predictors.items()}
    groups = _groups(targets)
    sites = _compare_sites(test, predictors, targets)
    weights = _resample(test, seed)
    return Evaluation(
        patients=len({study.patient for study in test}),
        studies=len(test),
        broken=int((labels[:, 0] == 1).sum()),
        losses={
            name: {"all": losses[name], **_known_losses(labels, p, targets)}
            for name, p in predictors.items()
        },
        intervals={
            name: _loss_intervals(labels, p, weights, targets) for name, p in predictors.items()
        },
        figures={name: _metrics(labels, p, weights, groups) for name, p in models.items()},
        curves={
            name: {
                group: _curves(labels[:, groups[group]].ravel(), p[:, groups[group]].ravel())
                for group in (targets.patient, LEVELS)
            }
            for name, p in models.items()
        },
        sites=sites,
        worst_site=max(sites, key=lambda site: sites[site][MODEL]),
        gain=losses[BEST] - losses[MODEL],
        gain_interval=bootstrap_difference(constant, model_losses, seed=seed),
        exams=tuple(
            {"study": name, "labels": truth, "probabilities": p, "loss": loss}
            for name, truth, p, loss in zip(
                predictions.studies,
                (list(study.labels) for study in test),
                predictions.probabilities.tolist(),
                exam_losses(labels, predictions.probabilities, targets).tolist(),
                strict=True,
            )
        ),
    )


def _known_losses(
    labels: Floats, probabilities: Floats, targets: Targets
) -> dict[str, float | None]:
    losses = target_losses(labels, probabilities, targets)
    known = dict(zip(losses, _have_labels(labels), strict=True))
    return {name: loss if known[name] else None for name, loss in losses.items()}


def _have_labels(labels: Floats) -> list[bool]:
    """Return whether each target has a known label."""
    return [bool(column.any()) for column in ~np.isnan(labels).T]


def _groups(targets: Targets) -> dict[str, list[int]]:
    """Return the columns that a metric is computed on: each target, and all levels pooled."""
    alone = {target: [column] for column, target in enumerate(targets.columns)}
    return alone | {LEVELS: list(range(1, len(targets)))}


def _resample(test: tuple[Study, ...], seed: int) -> Floats:
    """Count each exam in each bootstrap resample of the patients; the first row is all ones.

    Returns
    -------
    ndarray, shape (1 + RESAMPLES, studies), float64
    """
    names, place = np.unique([study.patient for study in test], return_inverse=True)
    picks = np.random.default_rng(seed).multinomial(
        len(names), [1 / len(names)] * len(names), RESAMPLES
    )
    return np.vstack([np.ones(len(names)), picks])[:, place].astype(np.float64)


def _metrics(
    labels: Floats,
    probabilities: Floats,
    weights: Floats,
    groups: Mapping[str, list[int]],
) -> dict[str, dict[str, tuple[float, float, float] | None]]:
    found: dict[str, dict[str, tuple[float, float, float] | None]] = {}
    for group, columns in groups.items():
        truth, p = labels[:, columns].ravel(), probabilities[:, columns].ravel()
        repeated = np.repeat(weights, len(columns), axis=1)
        resampled = rank_metrics(truth, p, repeated) | brier_score(truth, p, repeated)
        found[group] = {name: _interval(resampled[name]) for name in METRIC_TITLES}
    return found


def _interval(resampled: Floats) -> tuple[float, float, float] | None:
    """Return the value and its 95 % interval over the resamples in which it is defined."""
    if np.isnan(resampled[0]):
        return None
    return float(resampled[0]), *_quantiles(resampled)


def _loss_intervals(
    labels: Floats, probabilities: Floats, weights: Floats, targets: Targets
) -> dict[str, tuple[float, float] | None]:
    """95 % intervals of the competition's loss and of the loss of each target."""
    exams = exam_weights(labels, targets)
    losses = weighted_losses(labels, probabilities, targets)
    resampled = {"all": weights @ losses.sum(axis=1) / weights.sum(axis=1)}
    with np.errstate(invalid="ignore"):  # a resample may hold no known label of a target
        each = (weights @ losses) / (weights @ exams)
    resampled |= dict(zip(targets.columns, each.T, strict=True))
    known = [True, *_have_labels(labels)]
    return {
        name: _quantiles(values) if any_known else None
        for (name, values), any_known in zip(resampled.items(), known, strict=True)
    }


def _quantiles(resampled: Floats) -> tuple[float, float]:
    low, high = np.nanquantile(resampled[1:], [0.025, 0.975])
    return float(low), float(high)


def _curves(labels: Floats, probabilities: Floats) -> dict[str, Curve | None]:
    known = ~np.isnan(labels)
    labels, probabilities = labels[known], probabilities[known]
    if not labels.size:
        return dict.fromkeys(("calibration", "roc", "precision_recall"))
    observed, predicted = calibration_curve(labels, probabilities, n_bins=10, strategy="quantile")
    found: dict[str, Curve | None] = {"calibration": _points(predicted, observed)}
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
    test: tuple[Study, ...], predictors: Mapping[str, Floats], targets: Targets
) -> dict[str, dict[str, float]]:
    labels = label_table(test)
    losses = {name: exam_losses(labels, predictors[name], targets) for name in (MODEL, BEST)}
    scanners = np.array([study.scanner or "unknown" for study in test])
    return {
        str(site): {
            "studies": int((scanners == site).sum()),
            **{name: float(each[scanners == site].mean()) for name, each in losses.items()},
        }
        for site in np.unique(scanners)
    }


def show(evaluation: Evaluation) -> list[Table]:
    """Return losses, metrics and sites as tables for a terminal."""
    losses = _table(
        f"Loss on {evaluation.patients} test patients, {evaluation.broken} of"
        f" {evaluation.known[evaluation.targets[0]]} studies with a fracture",
        ("all", *evaluation.targets),
    )
    for name, each in evaluation.losses.items():
        shown = ("-" if loss is None else f"{loss:.3f}" for loss in each.values())
        losses.add_row(title(name), *shown)
    tables = [losses]
    for name, groups in evaluation.figures.items():
        figures = _table(
            f"Metrics of the {title(name)}, with 95 % confidence intervals", METRIC_TITLES.values()
        )
        for group, values in groups.items():
            figures.add_row(
                group.removeprefix("patient_"),
                *("-" if v is None else f"{v[0]:.3f} ({v[1]:.3f} to {v[2]:.3f})"
                  for v in values.values()),
            )  # fmt: skip
        tables.append(figures)
    sites = _table(f"Loss by site (highest: {evaluation.worst_site})", ("studies", MODEL, BEST))
    for site, each in evaluation.sites.items():
        sites.add_row(site, str(each["studies"]), f"{each[MODEL]:.3f}", f"{each[BEST]:.3f}")
    return [*tables, sites]


def _table(title: str, columns: Iterable[str]) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 0, 0, 1))
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column.removeprefix("patient_"), justify="right", no_wrap=True)
    return table
