from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from storage_schemas.targets import COMPETITION
from tests.cohorts import make_study
from training.config import BoostConfig, InputConfig, ModelConfig, RunConfig
from training.data.cohort import Study, label_table
from training.metrics.calibration import fit_calibration
from training.metrics.competition import competition_loss
from training.models.slice_model import build_model
from training.optimization.trainer import Trained
from training.rounds.candidates import CandidateWeights, copy_weights, decide, list_candidates
from training.rounds.recipes import PLAIN
from training.rounds.validation import (
    ValidationResult,
    ValidationSets,
    mean_by_patient,
    paired_gain,
)

POLICY = BoostConfig(step_lengths=(0.25, 0.5, 1.0))


class Pair(torch.nn.Module):
    """A parameter, a statistic, and a count."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((2,), value))
        self.register_buffer("mean", torch.full((2,), 10 * value))
        self.register_buffer("count", torch.tensor(2))


def candidates(
    policy: BoostConfig = POLICY,
    after: float = 2.0,
    ema: float | None = 1.5,
    before: float | None = 1.0,
) -> dict[str, CandidateWeights]:
    known = None if before is None else copy_weights(cast(PreTrainedModel, Pair(before)))
    trained = Trained(0.1, None if ema is None else {"weight": torch.full((2,), ema)})
    weights = copy_weights(cast(PreTrainedModel, Pair(after)))
    return {found.name: found for found in list_candidates(weights, known, trained, policy)}


def values(found: dict[str, CandidateWeights]) -> dict[str, float]:
    return {name: float(candidate.weights["weight"][0]) for name, candidate in found.items()}


def test_candidates_lie_between_the_incumbent_and_the_ema() -> None:
    found = candidates()
    assert values(found) == {"raw": 2.0, "average": 1.5, "step 0.25": 1.125, "step 0.5": 1.25}
    assert [name for name, candidate in found.items() if not candidate.stale_statistics] == ["raw"]


def test_without_an_ema_interpolation_ends_at_the_last_weights() -> None:
    assert values(candidates(ema=None)) == {"raw": 2.0, "step 0.25": 1.25, "step 0.5": 1.5}


def test_statistics_are_interpolated_and_counts_are_the_last() -> None:
    weights = candidates(ema=None)["step 0.25"].weights
    assert weights["mean"].tolist() == [12.5, 12.5]
    assert weights["count"].item() == 2


def test_nothing_is_mixed_with_a_start_that_was_not_trained() -> None:
    assert values(candidates(before=None)) == {"raw": 2.0, "average": 1.5}


def test_without_the_guard_the_trained_weights_are_the_only_candidate() -> None:
    assert values(candidates(PLAIN, ema=None)) == {"raw": 2.0}
    assert values(candidates(replace(POLICY, guarded=False))) == {"average": 1.5}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_no_candidate(bad: float) -> None:
    assert values(candidates(after=bad)) == {}
    assert values(candidates(ema=bad)) == {"raw": 2.0}


def make_sets(patients: int = 12) -> ValidationSets:
    guard = tuple(make_study(f"1.{n}", ["C2"] if n % 2 else []) for n in range(patients))
    return ValidationSets(guard, guard, guard, cast(Any, SimpleNamespace(targets=COMPETITION)))


def result(sets: ValidationSets, right: Sequence[float]) -> ValidationResult:
    """Probability of the true label for each study."""
    labels = label_table(sets.guard)
    sure = np.array(right)[:, None]
    guarding = np.where(labels == 1, sure, 1 - sure)
    calibration = fit_calibration(np.zeros((len(labels), 7)), labels, labels, COMPETITION)
    return ValidationResult(
        calibration, guarding, guarding, competition_loss(labels, guarding, COMPETITION)
    )


SETS = make_sets()
BEFORE = result(SETS, [0.7] * 12)


def test_a_round_by_which_all_gain_is_accepted() -> None:
    found = {"raw": result(SETS, [0.75] * 12), "average": result(SETS, [0.8] * 12)}
    decision = decide(SETS, BEFORE, found, POLICY)
    assert (decision.chosen, decision.best) == ("average", "average")
    assert decision.gain == pytest.approx(np.log(0.8 / 0.7))
    assert decision.error == pytest.approx(0, abs=1e-9)


def test_a_gain_within_its_error_is_rolled_back() -> None:
    lucky = result(SETS, [0.99] + [0.69] * 11)
    decision = decide(SETS, BEFORE, {"raw": lucky}, POLICY)
    assert lucky.loss < BEFORE.loss
    assert decision.gain is not None
    assert decision.error is not None
    assert 0 < decision.gain < decision.error
    assert (decision.chosen, decision.best) == (None, "raw")
    bold, timid = replace(POLICY, caution=0.0), replace(POLICY, caution=100.0)
    assert decide(SETS, BEFORE, {"raw": lucky}, bold).chosen == "raw"
    sure = result(SETS, [0.75] * 11 + [0.8])
    assert decide(SETS, BEFORE, {"raw": sure}, POLICY).chosen == "raw"
    assert decide(SETS, BEFORE, {"raw": sure}, timid).chosen is None


def test_a_loss_is_rolled_back_and_only_without_the_guard_accepted() -> None:
    worse = {"raw": result(SETS, [0.6] * 12)}
    assert decide(SETS, BEFORE, worse, POLICY).chosen is None
    assert decide(SETS, BEFORE, worse, PLAIN).chosen == "raw"


def test_where_there_is_nothing_to_protect_the_best_is_accepted() -> None:
    found = {"raw": result(SETS, [0.2] * 12), "average": result(SETS, [0.3] * 12)}
    assert decide(SETS, None, found, POLICY).chosen == "average"


def test_without_a_candidate_the_round_is_rolled_back() -> None:
    assert decide(SETS, BEFORE, {}, POLICY).chosen is None
    assert decide(SETS, None, {}, POLICY).chosen is None


def test_the_error_is_of_patients_and_not_of_their_studies() -> None:
    one = tuple(replace(study, patient="p") for study in SETS.guard)
    alone = replace(SETS, guard=one)
    gain, error = paired_gain(alone, BEFORE, result(SETS, [0.8] * 12))
    assert gain > 0
    assert error == np.inf


def test_the_mean_by_patient_is_over_each_ones_studies() -> None:
    studies: tuple[Study, ...] = tuple(
        make_study(f"1.{n}", patient=patient) for n, patient in enumerate("aba")
    )
    assert mean_by_patient(studies, np.array([1.0, 5.0, 3.0])).tolist() == [2.0, 5.0]


@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_a_validation_result_and_real_weights_read_back_equal(family: str) -> None:
    model = build_model(
        ModelConfig(family=family, patch=8, width=32, depth=1, heads=2), InputConfig(size=32), 0
    )
    before: dict[str, Tensor] = copy_weights(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    model.load_state_dict(before)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    again = ValidationResult.from_json(BEFORE.to_json())
    assert (again.calibration, again.loss) == (BEFORE.calibration, BEFORE.loss)
    assert (again.guarding == BEFORE.guarding).all()


def test_recipes_have_their_documented_policies() -> None:
    from training.rounds.recipes import RECIPES

    config = RunConfig(boost=replace(POLICY, replay=0.5))
    assert RECIPES["boost"].policy(config) == config.boost
    for name in ("seed", "joint"):
        assert RECIPES[name].policy(config) == PLAIN
    assert [name for name, recipe in RECIPES.items() if recipe.one_round] == ["joint"]
