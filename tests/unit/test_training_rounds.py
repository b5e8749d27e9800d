import json
from dataclasses import replace

import numpy as np
import pytest

from tests.cohorts import make_patients, make_vertebra
from training.cohort import Study
from training.config import InputConfig, RunConfig, TrainConfig
from training.rounds import RoundPlan, plan_rounds

COHORT = make_patients(60)
UNTRIMMED = InputConfig(trim_mm=0)


def settings(slices_per_round: int, rounds: int | None = None, seed: int = 0) -> RunConfig:
    train = TrainConfig(slices_per_round=slices_per_round, rounds=rounds)
    return RunConfig(seed=seed, inputs=UNTRIMMED, train=train)


def slices_of(study: Study) -> int:
    return sum(vertebra.shape[0] for vertebra in study.vertebrae)


@pytest.mark.parametrize("slices_per_round", [150, 400, 1000, 100_000])
def test_every_study_is_in_one_round_and_no_patient_is_cut(slices_per_round: int) -> None:
    plans = plan_rounds(COHORT, settings(slices_per_round))
    listed = [study for plan in plans for study in plan.studies]
    assert sorted(listed) == sorted(study.study for study in COHORT)
    patient = {study.study: study.patient for study in COHORT}
    rounds = [{patient[study] for study in plan.studies} for plan in plans]
    assert sum(map(len, rounds)) == len({study.patient for study in COHORT})


@pytest.mark.parametrize("slices_per_round", [150, 400, 1000])
def test_rounds_have_about_the_slices_asked_for(slices_per_round: int) -> None:
    plans = plan_rounds(COHORT, settings(slices_per_round))
    total = sum(map(slices_of, COHORT))
    largest = 2 * max(map(slices_of, COHORT))
    assert len(plans) == round(total / slices_per_round)
    for plan in plans:
        assert abs(plan.slices - total / len(plans)) <= largest


def test_the_slices_of_a_round_are_those_of_its_studies() -> None:
    size = {study.study: slices_of(study) for study in COHORT}
    for plan in plan_rounds(COHORT, settings(400)):
        assert plan.slices == sum(size[study] for study in plan.studies)


def test_trimmed_slices_do_not_count() -> None:
    config = replace(settings(100_000), inputs=InputConfig(trim_mm=1.5))
    (plan,) = plan_rounds(COHORT, config)
    assert plan.slices == sum(max(v.shape[0] - 2, 1) for study in COHORT for v in study.vertebrae)


@pytest.mark.parametrize(
    ("trim_mm", "spacing", "kept"),
    [(0, 1.0, range(9)), (2.9, 1.0, range(2, 7)), (3, 1.5, range(2, 7)), (50, 1.0, range(4, 5))],
)
def test_trimming_leaves_at_least_the_middle_slice(
    trim_mm: float, spacing: float, kept: range
) -> None:
    assert make_vertebra((9, 4, 4), (spacing, 1, 1)).slices(trim_mm) == kept


def test_a_limit_keeps_the_first_rounds_of_the_same_plan() -> None:
    assert plan_rounds(COHORT, settings(150, rounds=2)) == plan_rounds(COHORT, settings(150))[:2]


def test_the_seed_decides_and_the_order_of_the_studies_does_not() -> None:
    plans = plan_rounds(COHORT, settings(400))
    assert plan_rounds(COHORT[::-1], settings(400)) == plans
    assert plan_rounds(COHORT, settings(400, seed=1)) != plans


def test_every_round_has_its_share_of_the_broken_and_of_each_scanner() -> None:
    cohort = make_patients(240, seed=4)
    plans = plan_rounds(cohort, settings(2000))
    assert len(plans) > 3
    kinds = {one.study: (one.broken > 0, one.scanner == "scanner 1") for one in cohort}
    everywhere = np.mean(list(kinds.values()), axis=0)
    for plan in plans:
        here = np.mean([kinds[name] for name in plan.studies], axis=0)
        np.testing.assert_allclose(here, everywhere, atol=0.12)


def test_a_plan_reads_back_equal_from_json() -> None:
    plan = plan_rounds(COHORT, settings(400))[1]
    assert RoundPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
