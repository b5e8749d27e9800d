"""Ensembles of runs, fitted on patients that no run was trained on, and never on test patients."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage_schemas.errors import UsageError
from storage_schemas.store import StudyStore
from tests.cohorts import make_patients
from training.config import RunConfig, SplitConfig
from training.data.cohort import Study, label_table
from training.data.splits import Splits, split_patients
from training.evaluation import blend as blending
from training.evaluation.blend import blend
from training.evaluation.members import read_members
from training.metrics.calibration import fit_calibration
from training.metrics.competition import competition_loss
from training.rounds.folds import held_out_predictions, put_folds_together
from training.rounds.validation import ValidationResult
from training.runs import RunFolder

STUDIES = make_patients(60)
SHARES = SplitConfig(guard=0.2, calibration=0.2, test=0.2)
STORE = StudyStore("memory://never-opened")


@pytest.fixture(autouse=True)
def cohort(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contents of a store's tables."""
    monkeypatch.setattr(blending, "read_cohort", lambda store: STUDIES)


def guess(studies: Sequence[Study], skill: float, seed: int) -> np.ndarray:
    """Informative but over-confident probabilities."""
    random = np.random.default_rng(seed)
    labels = label_table(studies)
    logits = skill * (labels - 0.5) + random.normal(0, 2, labels.shape)
    found: np.ndarray = 1 / (1 + np.exp(-logits))
    return found


def write_run(
    path: Path,
    *,
    skill: float = 3.0,
    seed: int = 0,
    split: SplitConfig = SHARES,
    split_seed: int = 0,
) -> RunFolder:
    """A finished run, without the weights of its model."""
    run = RunFolder(path)
    run.create()
    splits = split_patients(STUDIES, split, split_seed)
    calibration, guard = (splits.choose(STUDIES, side) for side in ("calibration", "guard"))
    labels = label_table(calibration)
    fitted = fit_calibration(np.zeros((len(calibration), 7)), labels, labels)
    guesses = guess(calibration, skill, seed), guess(guard, skill, seed + 1)
    result = ValidationResult(fitted, *guesses, competition_loss(label_table(guard), guesses[1]))
    config = replace(RunConfig(), split=split, seed=split_seed)
    run.write("run.json", {"config": config.to_json(), "store": "s", "start": None})
    run.write("splits.json", splits.to_json())
    run.write("rounds.json", [])
    run.write(run.validation_file(3), result.to_json())
    run.append("rounds.jsonl", {"round": 3, "incumbent": 3, "accepted": True})
    run.model.mkdir()
    (run.model / "config.json").write_text(json.dumps({"of": path.name}))
    (run.model / "calibration.json").write_text(json.dumps(fitted.to_json()))
    return run


def write_folds(path: Path, folds: int = 3, **options: Any) -> RunFolder:
    run = RunFolder(path)
    run.create()
    names = [f"fold-{number}" for number in range(1, folds + 1)]
    for number, name in enumerate(names, start=1):
        split = replace(SHARES, folds=folds, fold=number)
        write_run(path / name, split=split, **options)
    put_folds_together(run, names, STUDIES)
    return run


def test_every_patient_but_the_locked_ones_is_held_out_by_one_fold() -> None:
    plain = split_patients(STUDIES, SHARES, 5)
    held: list[str] = []
    for fold in range(1, 5):
        splits = split_patients(STUDIES, replace(SHARES, folds=4, fold=fold), 5)
        assert splits.test == plain.test
        held += [*splits.guard, *splits.calibration]
        assert not {*splits.guard, *splits.calibration} & set(splits.train)
        assert abs(len(splits.guard) - len(splits.calibration)) <= 1
    assert sorted(held) == sorted({*plain.train, *plain.guard, *plain.calibration})


def test_a_plain_run_has_held_out_predictions_of_its_calibration_patients_alone(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    splits = Splits.from_json(run.read("splits.json"))
    expected = {study.study for study in splits.choose(STUDIES, "calibration")}
    assert set(held_out_predictions(run, STUDIES)) == expected


def test_a_cross_validated_run_has_held_out_predictions_of_all_but_the_test_patients(tmp_path: Path) -> None:
    run = write_folds(tmp_path / "f")
    splits = Splits.from_json(run.read("splits.json"))
    expected = {study.study for study in STUDIES if study.patient not in splits.test}
    found = held_out_predictions(run, STUDIES)
    assert set(found) == expected
    rows = (run.path / "out-of-fold.csv").read_text().splitlines()
    assert len(rows) == 1 + len(expected)
    study, *values = rows[1].split(",")
    np.testing.assert_array_equal(found[study], [float(value) for value in values])


def test_a_run_in_folds_offers_the_mean_of_its_models(tmp_path: Path) -> None:
    members = read_members(write_folds(tmp_path / "f", folds=3))
    assert sorted(member.folder.parent.name for member in members) == ["fold-1", "fold-2", "fold-3"]
    assert [member.weight for member in members] == pytest.approx([1 / 3] * 3)


def test_an_ensemble_is_no_worse_than_its_best_run_on_the_patients_it_was_fitted_to(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, seed=7 * i) for i, name in enumerate("abc")]
    found = blend(STORE, RunFolder(tmp_path / "out"), runs)
    assert sum(found.weights) == pytest.approx(1)
    assert found.loss < min(found.losses)
    assert min(found.weights) > 0.1


def test_an_uninformative_run_gets_no_weight_and_is_not_copied(tmp_path: Path) -> None:
    good, bad = write_run(tmp_path / "good", skill=9), write_run(tmp_path / "bad", skill=-4)
    out = RunFolder(tmp_path / "out")
    found = blend(STORE, out, [bad, good])
    assert found.weights == (0.0, 1.0)
    (member,) = read_members(out)
    assert json.loads((member.folder / "config.json").read_text()) == {"of": "good"}


def test_folds_in_an_ensemble_share_the_weight_of_their_run(tmp_path: Path) -> None:
    plain, folds = write_run(tmp_path / "plain"), write_folds(tmp_path / "folds", seed=40)
    out = RunFolder(tmp_path / "out")
    found = blend(STORE, out, [plain, folds])
    members = read_members(out)
    assert len(members) == 4
    assert sum(member.weight for member in members) == pytest.approx(1)
    shares = sorted(member.weight for member in members)
    assert any(share == pytest.approx(found.weights[1] / 3) for share in shares)
    assert all(member.folder.is_relative_to(out.path) for member in members)


def test_training_patients_of_any_run_are_no_calibration_patients_of_the_ensemble(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", seed=9)]
    blend(STORE, out := RunFolder(tmp_path / "out"), runs)
    splits = Splits.from_json(out.read("splits.json"))
    first = Splits.from_json(runs[0].read("splits.json"))
    assert (splits.test, splits.train) == (first.test, first.train)
    assert set(splits.calibration) == {*first.guard, *first.calibration}


def test_blending_again_replaces_the_ensemble_and_removes_the_evaluation(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", seed=9)]
    out = RunFolder(tmp_path / "out")
    blend(STORE, out, runs)
    before = {p: p.read_bytes() for p in out.path.rglob("*") if p.is_file()}
    out.write("evaluation.json", {})
    blend(STORE, out, runs)
    assert {p: p.read_bytes() for p in out.path.rglob("*") if p.is_file()} == before


def test_the_card_of_an_ensemble_lists_members_and_limits(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", seed=9)]
    blend(STORE, out := RunFolder(tmp_path / "out"), runs)
    card = (out.path / "README.md").read_text()
    assert "ensemble of 2 models" in card
    assert "Not a medical device" in card
    assert "external hospital" in card
    assert not [study for study in STUDIES if f"| {study.study} " in card]


def refuse(tmp_path: Path, runs: Sequence[RunFolder], match: str) -> None:
    out = tmp_path / "out"
    with pytest.raises(UsageError, match=match):
        blend(STORE, RunFolder(out), runs)
    assert not (out / "blend.json").exists()


def test_runs_of_other_locked_patients_are_refused(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", split_seed=1)]
    refuse(tmp_path, runs, "test patients")


def test_a_run_that_is_not_finished_is_refused(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b")]
    (runs[1].path / "rounds.jsonl").unlink()
    refuse(tmp_path, runs, "no finished run")


def test_one_run_is_no_ensemble(tmp_path: Path) -> None:
    refuse(tmp_path, [write_run(tmp_path / "a")], "two runs")


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b")]
    with pytest.raises(UsageError, match="holds no ensemble"):
        blend(STORE, runs[0], runs)
    assert runs[0].model.is_dir()


def test_too_few_patients_weigh_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b")]
    monkeypatch.setattr(blending, "FEWEST", 1000)
    refuse(tmp_path, runs, "cohort-too-small")


@pytest.mark.parametrize("place", ["../a/model", "/etc"])
def test_members_outside_of_the_folder_are_refused(tmp_path: Path, place: str) -> None:
    run = RunFolder(tmp_path / "out")
    run.create()
    run.write("blend.json", {"members": [{"folder": place, "weight": 1}]})
    with pytest.raises(UsageError, match="outside"):
        read_members(run)


@pytest.mark.parametrize("document", [{}, [], {"members": [{"folder": "a"}]}, {"members": []}])
def test_a_damaged_ensemble_is_refused_by_name(tmp_path: Path, document: Any) -> None:
    run = RunFolder(tmp_path / "out")
    run.create()
    run.write("blend.json", document)
    with pytest.raises(UsageError) as caught:
        read_members(run)
    assert (caught.value.kind, caught.value.key) == ("config-invalid", str(run.path))
