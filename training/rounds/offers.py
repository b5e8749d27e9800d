"""What a run produces: the accepted models, the final model, and the ensemble of rounds."""

import shutil

from transformers import PreTrainedModel

from storage_schemas.errors import RunError
from training.data.cohort import label_table
from training.durable import write_folder
from training.metrics.competition import competition_loss
from training.metrics.ensemble import RoundEnsemble, average_predictions, fit_weights
from training.models.slice_model import save_model
from training.rounds.cards import render_card
from training.rounds.plan import RunPlan
from training.rounds.recipes import find_recipe
from training.rounds.validation import ValidationResult, ValidationSets
from training.runs import CALIBRATION, HISTORY, ROUND_ENSEMBLE, RunFolder


def save_round(
    run: RunFolder,
    plan: RunPlan,
    number: int,
    model: PreTrainedModel,
    result: ValidationResult,
    sets: ValidationSets,
) -> None:
    """Save an accepted model with its card, its calibration and its validation result.

    Parameters
    ----------
    run : RunFolder
        Run folder to write to.
    plan : RunPlan
        Plan of the run.
    number : int
        Round of the model; 0 is the starting model.
    model : PreTrainedModel
        Accepted model.
    result : ValidationResult
        Validation result of the model.
    sets : ValidationSets
        Validation sets, for the loss of the best constants.

    Raises
    ------
    RunError
        ``run-unwritable``; models of earlier rounds are kept.
    """
    save_model(
        model,
        plan.config.inputs,
        run.round_model(number),
        card=render_card(
            run,
            number,
            find_recipe(plan.config.recipe).kind,
            loss=result.loss,
            best_constant=sets.best_constant,
        ),
        documents={CALIBRATION: result.calibration.to_json()},
    )
    run.write(run.validation_file(number), result.to_json())


def fit_round_ensemble(run: RunFolder, sets: ValidationSets) -> RoundEnsemble | None:
    """Fit and save the ensemble of the accepted rounds; return None if there are fewer than two."""
    numbers = [line["round"] for line in run.lines(HISTORY) if line["accepted"]]
    if run.has(run.validation_file(0)):
        numbers = [0, *numbers]
    if len(numbers) < 2:
        return None
    results = {n: ValidationResult.from_json(run.read(run.validation_file(n))) for n in numbers}
    tables = [results[n].calibrating for n in numbers]
    weights = fit_weights(label_table(sets.calibration), tables, sets.targets)
    kept = [(n, float(w)) for n, w in zip(numbers, weights, strict=True) if w]
    rounds, shares = zip(*kept, strict=True)
    averaged = average_predictions(shares, [results[n].guarding for n in rounds])
    ensemble = RoundEnsemble(
        rounds, shares, competition_loss(label_table(sets.guard), averaged, sets.targets)
    )
    run.write(ROUND_ENSEMBLE, ensemble.to_json())
    return ensemble


def offer(run: RunFolder, number: int) -> None:
    """Copy the model of a round atomically to the run's final model.

    Raises
    ------
    RunError
        ``training-diverged`` if no round was accepted; ``run-unwritable``.
    """
    if not run.round_model(number).is_dir():
        raise RunError("training-diverged", "no round was accepted", key=str(run.path))
    with write_folder(run.model) as partial:
        shutil.copytree(run.round_model(number), partial, dirs_exist_ok=True)
