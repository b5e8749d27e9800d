import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from storage_schemas.vertebrae import LABEL_COLUMNS
from training.metrics.calibration import Calibration, fit_calibration
from training.metrics.competition import best_constants, competition_loss, exam_weights

Exams = tuple[NDArray[np.float64], NDArray[np.int64]]


def make_exams(studies: int, gap: float, seed: int = 0) -> Exams:
    """Scores of fractured levels lie `gap` above those of intact ones, on an arbitrary scale."""
    random = np.random.default_rng(seed)
    levels = (random.random((studies, 7)) < [0.07, 0.14, 0.04, 0.05, 0.08, 0.14, 0.2]).astype(int)
    scores = 40 + 6 * (random.normal(0, 1, (studies, 7)) + gap * levels)
    return scores, np.column_stack([levels.max(axis=1), levels])


def fit(studies: int = 150, gap: float = 2.0, **change: Any) -> Calibration:
    scores, labels = make_exams(studies, gap)
    return fit_calibration(change.get("scores", scores), labels, change.get("train", labels))


CALIBRATION = fit()
TYPICAL = np.full((1, 7), 41.0)


@pytest.mark.parametrize("level", range(7))
def test_a_higher_score_is_a_higher_probability_of_its_level_and_of_the_patient(
    level: int,
) -> None:
    scores = np.repeat(TYPICAL, 40, axis=0)
    scores[:, level] = np.linspace(20, 65, 40)
    found = CALIBRATION.probabilities(scores)
    assert (np.diff(found[:, 1 + level]) > 0).all()
    assert (np.diff(found[:, 0]) > 0).all()
    others = np.delete(found, [0, 1 + level], axis=1)
    assert (others == others[0]).all()


@pytest.mark.parametrize("studies", [1, 12, 150])
def test_probabilities_are_probabilities_whatever_the_scores(studies: int) -> None:
    scores, labels = make_exams(studies, 2.0)
    found = fit_calibration(scores, labels, make_exams(50, 0)[1])
    extreme = np.array([[-1e6] * 7, [1e6] * 7, [np.nan] * 7, [40.0] * 7])
    p = found.probabilities(extreme)
    assert np.isfinite(p).all()
    assert ((p >= 0) & (p <= 1)).all()


@pytest.mark.parametrize("level", range(7))
def test_a_level_without_crop_gets_its_prior_and_the_others_stay(level: int) -> None:
    lacking = TYPICAL.copy()
    lacking[0, level] = np.nan
    found, whole = CALIBRATION.probabilities(lacking)[0], CALIBRATION.probabilities(TYPICAL)[0]
    assert found[1 + level] == CALIBRATION.priors[1 + level]
    kept = [i for i in range(1, 8) if i != 1 + level]
    assert found[kept].tolist() == whole[kept].tolist()
    assert 0 < found[0] < 1


def test_a_study_without_any_crop_gets_the_best_constants_of_training() -> None:
    train = make_exams(80, 0, seed=5)[1]
    found = fit(train=train).probabilities(np.full((1, 7), np.nan))[0]
    assert found.tolist() == best_constants(train).tolist()


def test_an_informative_model_beats_the_constants_on_unseen_patients() -> None:
    scores, labels = make_exams(400, 2.0, seed=8)
    constant = competition_loss(labels, best_constants(labels))
    assert competition_loss(labels, CALIBRATION.probabilities(scores)) < 0.8 * constant


@pytest.mark.parametrize("studies", [12, 150])
def test_an_uninformative_model_is_hardly_worse_than_the_constants(studies: int) -> None:
    _, train = make_exams(150, 0, seed=1)
    scores, labels = make_exams(studies, 0, seed=2)
    found = fit_calibration(scores, labels, train)
    unseen, truth = make_exams(400, 0, seed=3)
    constant = competition_loss(truth, best_constants(train))
    assert competition_loss(truth, found.probabilities(unseen)) < 1.1 * constant


def test_probabilities_of_a_large_split_match_the_observed_rates() -> None:
    scores, labels = make_exams(2000, 2.0, seed=4)
    found = fit_calibration(scores, labels, labels).probabilities(scores)
    weights = np.where(labels[:, :1] == 1, 1 / 22, 1 / 14) * np.where(labels == 1, 2, 1)
    for column in range(1, 8):
        w = weights[:, column]
        said = (w * found[:, column]).sum() / w.sum()
        assert said == pytest.approx((w * labels[:, column]).sum() / w.sum(), rel=0.15)


@pytest.mark.parametrize("seed", range(5))
def test_the_patients_map_is_near_the_noisy_or_until_there_are_many_patients(seed: int) -> None:
    scores, labels = make_exams(12, gap=8.0, seed=seed)
    few = fit_calibration(scores, labels, labels)
    assert 0.9 < few.patient_slope < 1.2, "separated by chance, which does not justify a steep slope"
    assert abs(few.patient_offset) < 0.2
    scores, labels = make_exams(2000, gap=8.0, seed=seed)
    labels[::2, 0] = 0  # unlike any noisy-or
    many = fit_calibration(scores, labels, labels).probabilities(scores)[:, 0]
    broken = labels[:, 1:].any(axis=1)
    weights = exam_weights(labels)[broken, 0]
    said, true = (np.average(of[broken], weights=weights) for of in (many, labels[:, 0]))
    assert said == pytest.approx(true, rel=0.1)


def test_the_scale_of_the_scores_does_not_matter() -> None:
    scores, labels = make_exams(60, 1.5)
    plain = fit_calibration(scores, labels, labels).probabilities(scores)
    scaled = fit_calibration(scores / 100 - 3, labels, labels).probabilities(scores / 100 - 3)
    np.testing.assert_allclose(scaled, plain, atol=1e-6)


@pytest.mark.parametrize(
    "scores",
    [np.full((20, 7), np.nan), np.full((20, 7), 3.0)],
    ids=["no crop", "all equal"],
)
def test_uninformative_scores_still_give_a_map(scores: NDArray[np.float64]) -> None:
    _, labels = make_exams(20, 0)
    found = fit_calibration(scores, labels, labels)
    p = found.probabilities(np.array([[3.0] * 7]))
    assert np.isfinite(p).all()
    assert ((p > 0) & (p < 1)).all()


def test_missing_crops_do_not_move_the_maps_of_other_levels_far() -> None:
    scores, labels = make_exams(150, 2.0)
    scores[::2, 3] = np.nan
    found = fit_calibration(scores, labels, labels)
    p, whole = found.probabilities(TYPICAL)[0], CALIBRATION.probabilities(TYPICAL)[0]
    np.testing.assert_allclose(np.delete(p, [0, 4]), np.delete(whole, [0, 4]), atol=0.05)


def test_a_calibration_reads_back_equal_from_json() -> None:
    assert Calibration.from_json(json.loads(json.dumps(CALIBRATION.to_json()))) == CALIBRATION
    assert len(CALIBRATION.priors) == len(LABEL_COLUMNS)


def heads(labels: NDArray[np.int64], gap: float, seed: int = 11) -> NDArray[np.float64]:
    """Patient logits of a model, on another arbitrary scale."""
    return 5 * (np.random.default_rng(seed).normal(size=len(labels)) + gap * labels[:, 0]) - 90


def test_the_patient_logit_of_a_model_is_used_if_there_is_one() -> None:
    scores, labels = make_exams(400, 1.0)
    patient = heads(labels, 3.0)
    found = fit_calibration(scores, labels, labels, patient)
    unseen, truth = make_exams(400, 1.0, seed=9)
    said = heads(truth, 3.0, seed=12)
    with_head = competition_loss(truth, found.probabilities(unseen, said))
    alone = fit_calibration(scores, labels, labels).probabilities(unseen)
    assert with_head < competition_loss(truth, alone) - 0.05
    assert (found.probabilities(unseen, said)[:, 1:] == alone[:, 1:]).all()
    assert (
        np.diff(found.probabilities(unseen[:1].repeat(9, 0), np.linspace(-99, -80, 9))[:, 0]) > 0
    ).all()


def test_an_uninformative_patient_logit_hardly_changes_the_patient() -> None:
    scores, labels = make_exams(400, 2.0)
    noise = heads(labels, 0.0)
    found = fit_calibration(scores, labels, labels, noise).probabilities(scores, noise)
    plain = fit_calibration(scores, labels, labels).probabilities(scores)
    assert np.abs(found - plain).mean() < 0.02


def test_a_patient_logit_that_is_wrong_is_left_out_and_not_believed_in_reverse() -> None:
    scores, labels = make_exams(400, 1.0)
    found = fit_calibration(scores, labels, labels, -heads(labels, 3.0))
    assert found.head_slope == 0
    alone = fit_calibration(scores, labels, labels)
    assert (found.patient_slope, found.patient_offset) == pytest.approx(
        (alone.patient_slope, alone.patient_offset)
    )


def test_a_patient_without_that_logit_gets_the_noisy_or_alone() -> None:
    scores, labels = make_exams(200, 2.0)
    patient = heads(labels, 2.0)
    patient[::3] = np.nan
    found = fit_calibration(scores, labels, labels, patient)
    p = found.probabilities(scores, patient)
    assert ((p > 0) & (p < 1)).all()
    average = np.full(len(patient), found.head_centre)
    assert (p[::3] == found.probabilities(scores, average)[::3]).all()
