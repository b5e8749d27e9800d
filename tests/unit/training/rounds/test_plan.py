import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from storage_schemas.errors import UsageError
from storage_schemas.targets import COMPETITION
from tests.cohorts import make_patients, make_study, make_vertebra
from training.config import InputConfig, RunConfig, TrainConfig
from training.data.cohort import Study
from training.models.slice_training import count_slices
from training.rounds.plan import RoundPlan
from training.rounds.plan import plan_rounds as plan_all_rounds

COHORT = make_patients(60)
UNTRIMMED = InputConfig(trim_mm=0)


def settings(slices_per_round: int, rounds: int | None = None, seed: int = 0) -> RunConfig:
    train = TrainConfig(slices_per_round=slices_per_round, rounds=rounds)
    return RunConfig(seed=seed, inputs=UNTRIMMED, train=train)


def plan_rounds(studies: Sequence[Study], config: RunConfig, **more: Any) -> tuple[RoundPlan, ...]:
    return plan_all_rounds(studies, config, lambda study: count_slices(study, config), **more)


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
def test_rounds_have_about_the_requested_number_of_slices(slices_per_round: int) -> None:
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


def test_slices_of_unlabelled_vertebrae_do_not_count() -> None:
    known = [make_study(f"1.{n}", ["C1"] if n % 2 else ()) for n in range(8)]
    partly = [make_study(f"2.{n}", unknown=["C3", "C4"]) for n in range(8)]
    (plan,) = plan_rounds([*known, *partly], settings(100_000))
    assert plan.slices == 8 * 7 * 5 + 8 * 5 * 5


@pytest.mark.parametrize("order", ["shuffled", "site"])
def test_every_round_has_a_trainable_input_and_no_study_is_lost(order: str) -> None:
    cohort = [
        make_study(
            f"1.{n}",
            ["C1"] if n % 2 else (),
            scanner=f"scanner {n % 4}",
            unknown=() if n in (3, 8, 13) else COMPETITION.levels,
        )
        for n in range(16)
    ]
    config = settings(10)
    config = replace(config, train=replace(config.train, order=order))
    plans = plan_rounds(cohort, config)
    size = {study.study: count_slices(study, config) for study in cohort}
    assert len(plans) > 1
    assert all(any(size[study] for study in plan.studies) for plan in plans)
    assert sorted(s for plan in plans for s in plan.studies) == sorted(size)


def test_patients_without_a_labelled_vertebra_train_nothing() -> None:
    cohort = [make_study(f"1.{n}", unknown=COMPETITION.levels) for n in range(4)]
    with pytest.raises(UsageError, match="labels-missing"):
        plan_rounds(cohort, settings(100))


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


def test_every_round_has_its_share_of_fractures_and_of_each_scanner() -> None:
    cohort = make_patients(240, seed=4)
    plans = plan_rounds(cohort, settings(2000))
    assert len(plans) > 3
    kinds = {one.study: (one.fractured_levels > 0, one.scanner == "scanner 1") for one in cohort}
    everywhere = np.mean(list(kinds.values()), axis=0)
    for plan in plans:
        here = np.mean([kinds[name] for name in plan.studies], axis=0)
        np.testing.assert_allclose(here, everywhere, atol=0.12)


def test_a_plan_reads_back_equal_from_json() -> None:
    plan = plan_rounds(COHORT, settings(400))[1]
    assert RoundPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def patients_of(names: Sequence[str]) -> set[str]:
    patient = {study.study: study.patient for study in COHORT}
    return {patient[name] for name in names}


@pytest.mark.parametrize("replay", [0.25, 0.4, 0.5])
def test_replay_has_its_share_of_a_round_once_there_is_enough(replay: float) -> None:
    plans = plan_rounds(make_patients(240), settings(800), replay=replay)
    assert len(plans) > 5
    assert (plans[0].replay, plans[0].replay_slices) == ((), 0)
    for plan in plans[1:]:
        share = plan.replay_slices / (plan.replay_slices + plan.slices)
        assert share == pytest.approx(replay, abs=0.04)


def test_replay_is_all_studies_of_patients_of_earlier_rounds_only() -> None:
    plans = plan_rounds(COHORT, settings(150), replay=0.5)
    size = {study.study: slices_of(study) for study in COHORT}
    for number, plan in enumerate(plans):
        earlier = {name for other in plans[:number] for name in other.studies}
        again = set(plan.replay)
        assert again <= earlier
        assert again == {n for n in earlier if patients_of([n]) <= patients_of(plan.replay)}
        assert plan.replay_slices == sum(size[name] for name in again)


def test_replay_changes_neither_rounds_nor_steps() -> None:
    def of(plans: tuple[RoundPlan, ...]) -> list[tuple[object, ...]]:
        return [(plan.studies, plan.steps) for plan in plans]

    assert of(plan_rounds(COHORT, settings(150), replay=0.5)) == of(
        plan_rounds(COHORT, settings(150))
    )


def test_one_round_has_all_patients_and_all_steps() -> None:
    plans = plan_rounds(COHORT, settings(150, rounds=4))
    (joint,) = plan_rounds(COHORT, settings(150, rounds=4), one_round=True)
    assert sorted(joint.studies) == sorted(name for plan in plans for name in plan.studies)
    assert joint.steps == sum(plan.steps for plan in plans)


def test_by_site_no_round_mixes_sites_and_each_site_comes_once() -> None:
    train = TrainConfig(slices_per_round=300, order="site")
    plans = plan_rounds(COHORT, RunConfig(inputs=UNTRIMMED, train=train))
    scanner = {study.study: study.scanner for study in COHORT}
    sites = [{scanner[name] for name in plan.studies} for plan in plans]
    assert [len(site) for site in sites] == [1] * len(plans)
    order = [site.pop() for site in sites]
    changes = sum(a != b for a, b in pairwise(order))
    assert changes == len(set(scanner.values())) - 1
    assert sorted(n for plan in plans for n in plan.studies) == sorted(s.study for s in COHORT)


def test_steps_follow_the_slices_whose_target_is_known() -> None:
    (plan,) = plan_rounds(COHORT, replace(settings(10**6), train=TrainConfig(
        slices_per_round=10**6, epochs=2, batch_size=4, accumulation=2)))  # fmt: skip
    assert plan.steps == round(plan.slices * 2 / 8)
