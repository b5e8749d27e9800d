"""Models of other targets than the competition's: their size, their scores, and what they save."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from storage_schemas.errors import UsageError
from storage_schemas.targets import COMPETITION, Targets
from tests.cohorts import make_buffer, make_vertebra
from tests.unit.training.models.test_sequence_training import CONFIG, work
from training.data.cohort import Study
from training.data.crop_buffer import CropBuffer
from training.explanation.attribution import attribute_study
from training.models.kinds import KINDS, load_any, score_any
from training.models.sequence_inputs import index_patients, list_warnings
from training.models.sequence_loss import find_targets
from training.models.sequence_model import MODEL_TYPE
from training.models.slice_model import save_model

THORACIC = Targets(("T2", "T10"), "any_fracture", ((3, 7), (1, 4), (2, 5)))


def make_round(patients: int = 6) -> tuple[CropBuffer, tuple[Study, ...]]:
    """Patients with a crop of T10 each, and of T2 each second one."""
    random = np.random.default_rng(0)
    crops: list[Any] = []
    studies = []
    for number in range(patients):
        study, labels = f"1.{number}", (number % 2, number // 2 % 2)
        mine = [
            make_vertebra((5, 16, 16), study=study, level=level, fractured=label)
            for level, label in zip(THORACIC.levels, labels, strict=True)
            if level == "T10" or number % 2
        ]
        crops += [(vertebra, random.normal(300, 120, (5, 16, 16))) for vertebra in mine]
        studies.append(Study(study, study, "", (max(labels), *labels), tuple(mine)))
    buffer = make_buffer(*crops, targets=THORACIC)
    return replace(buffer, studies=tuple(studies)), tuple(studies)


@pytest.mark.parametrize("kind", ["slice", MODEL_TYPE])
def test_scores_have_a_column_for_each_level_in_its_place(kind: str) -> None:
    buffer, studies = make_round()
    model, inputs = KINDS[kind].start(CONFIG, None, THORACIC)
    found = score_any(model, inputs, buffer, studies)
    assert found.score.shape == (len(studies), 2)
    np.testing.assert_array_equal(np.isnan(found.score[:, 0]), [True, False] * 3)
    assert not np.isnan(found.score[:, 1]).any()


def test_a_sequence_model_has_a_logit_for_each_target_and_trains() -> None:
    buffer, _ = make_round()
    model, inputs = KINDS[MODEL_TYPE].start(CONFIG, None, THORACIC)
    trained = KINDS[MODEL_TYPE].train(model, inputs, buffer, CONFIG, work(steps=2))
    assert np.isfinite(trained.loss)
    valid = torch.ones(1, 2, 3, dtype=torch.bool)
    assert model(torch.zeros(6, 3, 16, 16), valid).logits.shape == (1, 3)


def test_losses_are_weighed_as_the_targets_say() -> None:
    buffer, studies = make_round()
    index = index_patients(buffer, [study.study for study in studies], 5, 0)
    found = find_targets(buffer, index, studies)
    # Labels of the second patient: fractured at T2.
    np.testing.assert_allclose(found.patient_weight[1], np.array([7, 4, 2]) / 13)
    np.testing.assert_allclose(found.vertebra_weight[1], [4, 2])
    np.testing.assert_allclose(found.vertebra_weight[2], [1, 5])


def test_the_levels_are_saved_only_where_they_are_not_the_competitions(tmp_path: Path) -> None:
    for targets, folder in ((COMPETITION, tmp_path / "c"), (THORACIC, tmp_path / "t")):
        model, inputs = KINDS[MODEL_TYPE].start(CONFIG, None, targets)
        save_model(model, inputs, folder, card="")
        again, _ = load_any(folder)
        assert tuple(again.config.levels) == targets.levels
        for name, value in model.state_dict().items():
            assert torch.equal(again.state_dict()[name], value), name
    assert "levels" not in json.loads((tmp_path / "c" / "config.json").read_text())
    assert json.loads((tmp_path / "t" / "config.json").read_text())["levels"] == ["T2", "T10"]


def test_a_sequence_model_does_not_go_on_with_other_levels(tmp_path: Path) -> None:
    model, inputs = KINDS[MODEL_TYPE].start(CONFIG, None, COMPETITION)
    save_model(model, inputs, tmp_path / "m", card="")
    with pytest.raises(UsageError, match="T10") as caught:
        KINDS[MODEL_TYPE].start(CONFIG, tmp_path / "m", THORACIC)
    assert caught.value.kind == "model-invalid"


@pytest.mark.parametrize("kind", ["slice", MODEL_TYPE])
def test_attribution_and_warnings_name_the_levels_of_the_targets(kind: str) -> None:
    buffer, studies = make_round()
    model, inputs = KINDS[kind].start(CONFIG, None, THORACIC)
    both = attribute_study(model, inputs, buffer, "1.1")
    assert [one.level for one in both] == ["T2", "T10"]
    assert list_warnings(studies[0].vertebrae, THORACIC) == [
        "T2 was not found in the scan: its probability is a prior, not a prediction"
    ]
