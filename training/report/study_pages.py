"""Explaining predictions: for each study a JSON document and a page in a folder."""

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
    """Write ``<study>.json`` and ``<study>.html`` of each study.

    Parameters
    ----------
    store : StudyStore
    run : RunFolder
        What predicted. Of a blend its heaviest sequence model shows what it looked at, or its
        heaviest model where there is none.
    studies : sequence of Study
    predictions : Predictions
        Of these studies.
    folder : Path
    advance : callable
        Called after each study.

    Raises
    ------
    UsageError
        ``config-invalid`` where the folder cannot be written, or as `read_members`.
    StoreError
        Of a shard that is missing or damaged.
    """
    member = _choose(read_members(run))
    model, inputs = load_any(member.folder)
    name = "sequence model" if _is_sequence(member) else "slice model"
    if member.weight < 1:
        name += f", {member.weight:.0%} of the blend"
    for study, chances in zip(studies, predictions.probabilities.tolist(), strict=True):
        with open_buffer(store, [study], run.path, masks=inputs.mask) as buffer:
            page = StudyPage(
                study=study.study,
                probabilities=tuple(chances),
                warnings=tuple(list_warnings(study.vertebrae)),
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
