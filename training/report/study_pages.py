"""Explanations of predictions: a JSON document and an HTML page for each study."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from presentation.output import write_output
from storage_schemas.store import StudyStore
from training.data.cohort import Study
from training.data.crop_buffer import open_buffer
from training.evaluation.members import Member, read_members
from training.evaluation.predict import Predictions
from training.explanation.attribution import attribute_study
from training.models.kinds import load_any
from training.models.sequence_inputs import list_warnings
from training.models.sequence_model import MODEL_TYPE
from training.models.slice_model import read_model_type
from training.report.study_page import StudyPage, describe, find_origins, render_page
from training.runs import RunFolder


def explain_studies(
    store: StudyStore,
    run: RunFolder,
    studies: Sequence[Study],
    predictions: Predictions,
    folder: Path,
    advance: Callable[[], None] = lambda: None,
) -> None:
    """Write ``<study>.json`` and ``<study>.html`` for each study.

    Parameters
    ----------
    store : StudyStore
        Store that the crops are read from.
    run : RunFolder
        Run that predicted. In an ensemble, the sequence model with the largest weight is explained,
        or the model with the largest weight if there is no sequence model.
    studies : sequence of Study
        Studies to explain.
    predictions : Predictions
        Predictions of the same studies.
    folder : Path
        Folder to write to.
    advance : callable
        Called without arguments after each study.

    Raises
    ------
    UsageError
        ``config-invalid`` if the folder cannot be written or the run cannot be read.
    StoreError
        ``array-missing`` or ``array-damaged`` if a shard cannot be read.
    """
    targets = predictions.targets
    member = _choose(read_members(run))
    model, inputs = load_any(member.folder)
    name = "sequence model" if _is_sequence(member) else "slice model"
    if member.weight < 1:
        name += f", {member.weight:.0%} of the ensemble"
    for study, probabilities in zip(studies, predictions.probabilities.tolist(), strict=True):
        with open_buffer(store, [study], targets, run.path, masks=inputs.mask) as buffer:
            page = StudyPage(
                study=study.study,
                probabilities=dict(zip(targets.columns, probabilities, strict=True)),
                warnings=tuple(list_warnings(study.vertebrae, targets)),
                attributions=attribute_study(model, inputs, buffer, study.study),
                model=name,
            )
        origins = find_origins(store, study.study)
        document = json.dumps(describe(page, origins), indent=1) + "\n"
        write_output(folder / f"{study.study}.json", document)
        write_output(folder / f"{study.study}.html", render_page(page, origins))
        advance()


def _choose(members: Sequence[Member]) -> Member:
    return next((member for member in members if _is_sequence(member)), members[0])


def _is_sequence(member: Member) -> bool:
    return read_model_type(member.folder) == MODEL_TYPE
