import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from storage_schemas.errors import UsageError
from tests.cohorts import make_patients, make_study
from training.config import SplitConfig
from training.data.cohort import Study
from training.data.splits import SIDES, Splits, split_patients

COHORT = make_patients(100)
EVERYONE = {study.patient for study in COHORT}


@pytest.mark.parametrize("seed", range(4))
def test_every_patient_is_in_one_split_with_all_studies(seed: int) -> None:
    splits = split_patients(COHORT, SplitConfig(), seed)
    listed = [patient for side in SIDES for patient in getattr(splits, side)]
    assert sorted(listed) == sorted(EVERYONE)
    chosen = [study.study for side in SIDES for study in splits.choose(COHORT, side)]
    assert sorted(chosen) == sorted(study.study for study in COHORT)


def test_the_seed_decides_and_the_order_of_the_studies_does_not() -> None:
    splits = split_patients(COHORT, SplitConfig(), seed=1)
    assert split_patients(COHORT[::-1], SplitConfig(), seed=1) == splits
    assert split_patients(COHORT, SplitConfig(), seed=2) != splits


@pytest.mark.parametrize("config", [SplitConfig(), SplitConfig(0.2, 0.15, 0.3)])
def test_splits_have_their_shares_of_all_and_of_fractured_patients(config: SplitConfig) -> None:
    splits = split_patients(COHORT, config, seed=3)
    fractured_levels = {study.patient for study in COHORT if study.fractured_levels}
    two = {study.patient for study in COHORT if study.fractured_levels >= 2}
    for side in ("guard", "calibration", "test"):
        share = getattr(config, side)
        patients = set(getattr(splits, side))
        for group, slack in ((EVERYONE, 3), (fractured_levels, 3), (two, 2)):
            assert abs(len(patients & group) - share * len(group)) <= slack


def test_each_level_has_the_same_fracture_rate_in_each_split() -> None:
    cohort = make_patients(400, seed=9)
    splits = split_patients(cohort, SplitConfig(), seed=0)
    labels = {study.patient: study.labels or () for study in cohort}
    everywhere = np.mean(list(labels.values()), axis=0)
    for side in SIDES:
        here = np.mean([labels[patient] for patient in getattr(splits, side)], axis=0)
        np.testing.assert_allclose(here, everywhere, atol=0.05)


@pytest.mark.parametrize("config", [SplitConfig(), SplitConfig(0.2, 0.15, 0.3)])
def test_patients_with_unknown_labels_are_spread_over_the_splits(config: SplitConfig) -> None:
    unknown = {f"patient {number}" for number in range(0, 100, 4)}
    cohort = [
        replace(study, labels=(*study.labels[:3], None, *study.labels[4:]))
        if study.patient in unknown
        else study
        for study in COHORT
    ]
    splits = split_patients(cohort, config, seed=3)
    for side in ("guard", "calibration", "test"):
        here = unknown & set(getattr(splits, side))
        assert abs(len(here) - getattr(config, side) * len(unknown)) <= 2


def test_a_patient_with_an_unknown_label_is_neither_fractured_nor_intact() -> None:
    fractured = [make_study(f"1.{n}", ["C1"]) for n in range(8)]
    nobody = [make_study(f"2.{n}", unknown=["patient_overall"]) for n in range(8)]
    with pytest.raises(UsageError, match="and 0 intact of 16 patients"):
        split_patients([*fractured, *nobody], SplitConfig(0.2, 0.2, 0.2), 0)


def test_a_patients_known_labels_are_those_of_all_studies() -> None:
    shares = SplitConfig(0.25, 0.25, 0.25)
    pairs = [
        make_study(
            f"1.{n}.{part}", ["C2"] if n % 2 and part else (), patient=f"{n}", unknown=hidden
        )
        for n in range(16)
        for part, hidden in enumerate((["patient_overall", "C2"], []))
    ]
    splits = split_patients(pairs, shares, 0)
    for side in SIDES:
        patients = getattr(splits, side)
        assert sum(int(patient) % 2 for patient in patients) == len(patients) / 2 == 2


@pytest.mark.parametrize(
    "studies",
    [
        [make_study("1.1", ["C1"]), make_study("1.2")],
        make_patients(7),
        [make_study(f"1.{number}") for number in range(40)],
        [make_study(f"1.{number}", ["C2"]) for number in range(40)],
    ],
    ids=["two patients", "seven patients", "none fractured", "all fractured"],
)
def test_a_cohort_that_cannot_fill_every_split_is_refused(studies: Sequence[Study]) -> None:
    with pytest.raises(UsageError, match="cohort-too-small"):
        split_patients(studies, SplitConfig(), seed=0)


def test_a_patient_in_two_splits_is_an_error() -> None:
    with pytest.raises(ValueError, match="two splits"):
        Splits(train=("a", "b"), guard=("c",), calibration=("d",), test=("b",))


def test_splits_read_back_equal_from_json() -> None:
    splits = split_patients(COHORT, SplitConfig(), seed=0)
    assert Splits.from_json(json.loads(json.dumps(splits.to_json()))) == splits
