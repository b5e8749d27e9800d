"""Training from Python: the commands of ``cspine-training`` as functions, with the same settings.

`training` itself offers them, as ``training.boost(...)``. Not here: what they do, which the modules
below know, and how a command line shows it (`training.cli`).
"""

import logging
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from training.config import PRESETS, RunConfig
from training.flags import RUN_SETTINGS
from training.localizer.config import LocalizerConfig

if TYPE_CHECKING:
    from storage_schemas.localizer_card import LocalizerCard
    from storage_schemas.store import StudyStore
    from training.evaluation.evaluate import Evaluation
    from training.evaluation.predict import Predictions
    from training.runs import RunFolder

# torch and transformers take seconds to import: each function imports what it needs.


def quiet_libraries() -> None:
    """Set what libraries read when they are imported: no network, no messages, no busy waiting."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # Threads of torch that wait by spinning take the cores from those that work.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="torch")


def read_config(path: Path | str, *, preset: str = "default") -> RunConfig:
    """Read settings from a TOML file, or from the ``run.json`` of an earlier run.

    Parameters
    ----------
    path : path
        File to read.
    preset : str
        Name of the preset that has the values of what the file leaves out.

    Raises
    ------
    UsageError
        ``config-invalid``, naming the file and the field.
    """
    return RUN_SETTINGS.read_file(Path(path), PRESETS[preset])


def boost(
    store: "StudyStore | str",
    run: Path | str,
    config: RunConfig | None = None,
    *,
    model: Path | str | None = None,
) -> "RunFolder":
    """Train a model in rounds; a RUN that was interrupted resumes.

    Parameters
    ----------
    store : StudyStore or str
        Store to train on, or its folder or URL.
    run : path
        Folder to write to: new, or one that holds a run of the same settings.
    config : RunConfig, optional
        All settings; by default those of the preset ``default``. With ``split.folds`` and without
        ``split.fold`` one run is trained for each fold, and RUN offers their mean.
    model : path, optional
        Local checkpoint to start from, a folder written by ``save_pretrained``.

    Returns
    -------
    RunFolder
        The folder of the run; its `model` is the folder of the model.

    Raises
    ------
    UsageError
        ``config-invalid``, ``cohort-too-small``, ``labels-missing``, ``model-invalid`` or
        ``store-not-found``.
    StoreError
        Where an array of the store is missing or damaged.
    RunError
        ``training-diverged`` or ``run-unwritable``.
    """
    quiet_libraries()
    from training.ranks import joined_ranks
    from training.rounds.boosting import boost as boost_rounds
    from training.rounds.folds import boost_folds
    from training.runs import RunFolder

    config = config or RunConfig()
    start = None if model is None else Path(model)
    opened, folder = open_store(store), RunFolder(Path(run))
    with joined_ranks():
        if trains_every_fold(config):
            boost_folds(opened, folder, config, start, config.split.folds)
        else:
            boost_rounds(opened, folder, config, start)
    return folder


def trains_every_fold(config: RunConfig) -> bool:
    """Whether settings ask for one run for each fold."""
    return config.split.folds > 0 and config.split.fold == 0


def train_localizer(
    store: "StudyStore | str", out: Path | str, config: LocalizerConfig | None = None
) -> "LocalizerCard":
    """Train the network that finds C1 to C7 in studies without masks.

    Parameters
    ----------
    store : StudyStore or str
        Store of a pipeline run with masks, or its folder or URL.
    out : path
        ONNX file to write; its card is written beside it as JSON.
    config : LocalizerConfig, optional
        All settings; by default those of the preset ``default``.

    Returns
    -------
    LocalizerCard
        How the network does on the held-out studies.

    Raises
    ------
    UsageError
        ``config-invalid``, ``cohort-too-small`` or ``store-not-found``.
    """
    quiet_libraries()
    from training.localizer.train import train_localizer as train

    return train(open_store(store), Path(out), config or LocalizerConfig())


def evaluate(run: Path | str, store: "StudyStore | str") -> "Evaluation":
    """Score a run on its locked test patients, and write ``evaluation.json`` into its folder.

    Parameters
    ----------
    run : path
        Folder of a finished run.
    store : StudyStore or str
        Store with the test patients and their labels, or its folder or URL.

    Returns
    -------
    Evaluation
        Losses with intervals, curves and figures; `headline` sums them up in a line.

    Raises
    ------
    UsageError
        ``config-invalid`` where RUN holds no finished run; ``labels-missing`` where STORE lacks a
        test patient or the labels.
    StoreError
        Where an array of the store is missing or damaged.
    """
    quiet_libraries()
    from training.evaluation.evaluate import evaluate as score
    from training.runs import RunFolder

    return score(open_store(store), RunFolder(Path(run)))


def predict(
    run: Path | str,
    store: "StudyStore | str",
    out: Path | str | None = None,
    *,
    submission: str | None = None,
    stack: bool = False,
    explain: Path | str | None = None,
) -> "Predictions":
    """Predict the fracture probabilities of every study of a store.

    Parameters
    ----------
    run : path
        Folder of a finished run.
    store : StudyStore or str
        Store with the studies, or its folder or URL; labels are not read.
    out : path, optional
        CSV file to write.
    submission : str, optional
        Path or URL of ``sample_submission.csv``: `out` becomes a submission of its rows, and the
        table is written beside it, as ``.table.csv``.
    stack : bool
        Whether to use the ensemble of rounds in place of the one model.
    explain : path, optional
        Folder to write a page and a JSON file of each study to.

    Returns
    -------
    Predictions
        `studies` and their `probabilities`, shape (studies, labels): the patient's label, then
        those of the levels.

    Raises
    ------
    UsageError
        ``config-invalid`` or ``model-invalid``; ``csv-invalid`` of `submission`.
    StoreError
        Where an array of the store is missing or damaged.
    """
    return predict_and_write(
        run, store, out, submission=submission, stack=stack, explain=explain
    ).predictions


@dataclass(frozen=True)
class Written:
    """Predictions, and what was written of them.

    Parameters
    ----------
    predictions : Predictions
        Probabilities of the studies.
    counts : mapping of str to int
        Rows of the submission, where one was requested.
    files : mapping of str to Path
        Files and folders that were written, by what they are.
    """

    predictions: "Predictions"
    counts: Mapping[str, int]
    files: Mapping[str, Path]


def predict_and_write(
    run: Path | str,
    store: "StudyStore | str",
    out: Path | str | None = None,
    *,
    submission: str | None = None,
    stack: bool = False,
    explain: Path | str | None = None,
) -> Written:
    """As `predict`; returns what was written, too."""
    quiet_libraries()
    from presentation.progress import StageProgress, say_event
    from training.data.cohort import read_cohort
    from training.evaluation.members import read_members
    from training.evaluation.predict import predict_studies, write_submission, write_table
    from training.models.sequence_inputs import list_warnings
    from training.report.study_pages import explain_studies
    from training.runs import RunFolder

    folder, opened = RunFolder(Path(run)), open_store(store)
    studies = read_cohort(opened, folder.targets())
    crops = sum(len(study.vertebrae) for study in studies)
    with StageProgress("read studies", crops, "crops") as progress:
        found = predict_studies(opened, folder, studies, progress.advance, ensemble=stack)
    if stack:
        found = found.with_ensemble(folder)
    for study in studies:
        if reasons := list_warnings(study.vertebrae, found.targets):
            say_event("warning", study=study.study, reasons="; ".join(reasons))
    counts: Mapping[str, int] = {}
    files: dict[str, Path] = {}
    if out is not None:
        files["table"] = Path(out)
        if submission:
            files = {"submission": Path(out), "table": Path(out).with_suffix(".table.csv")}
            priors = read_members(folder)[0].calibration().priors
            counts = write_submission(found, priors, submission, files["submission"])
        write_table(found, files["table"])
    if explain is not None:
        with StageProgress("explain", len(studies), "studies") as progress:
            explain_studies(opened, folder, studies, found, Path(explain), progress.advance)
        files["pages"] = Path(explain)
    return Written(found, counts, files)


def open_store(store: "StudyStore | str") -> "StudyStore":
    """A store, opened where its folder or URL is given."""
    from storage_schemas.store import StudyStore

    return StudyStore.open(store) if isinstance(store, str) else store
