"""Starting, training and scoring a sequence model, as the round loop does."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from storage_schemas.errors import UsageError
from storage_schemas.targets import COMPETITION
from tests.cohorts import make_buffer, make_vertebra
from training.config import (
    AugmentConfig,
    InputConfig,
    ModelConfig,
    RunConfig,
    SequenceConfig,
    TrainConfig,
)
from training.data.cohort import Study, label_table
from training.data.crop_buffer import CropBuffer
from training.explanation.attribution import attribute_study
from training.metrics.calibration import fit_calibration
from training.models.kinds import KINDS, load_any, score_any
from training.models.sequence_inputs import list_warnings
from training.models.sequence_model import MODEL_TYPE, CervicalSequenceModel
from training.models.sequence_scoring import run_sequence_model
from training.models.slice_model import build_model, save_model
from training.optimization.trainer import RoundWork, Trained

SEQUENCE = KINDS[MODEL_TYPE]
STILL = AugmentConfig(
    rotate_degrees=0, shift_mm=0, scale=0, gain=0, offset=0, noise=0, forget_mask=0
)
CONFIG = RunConfig(
    recipe="sequence",
    inputs=InputConfig(size=16, crop_mm=16, trim_mm=0),
    model=ModelConfig(family="resnet", patch=8, width=32, depth=1),
    augment=STILL,
    train=TrainConfig(batch_size=24, learning_rate=3e-3, checkpoint_steps=10_000),
    sequence=SequenceConfig(
        positions=5, sampled=2, width=8, patient_width=8, dropout=0.0, head_epochs=4, head_batch=8
    ),
)


def make_round(
    patients: int, seed: int = 0, folder: Path | None = None, missing: tuple[str, ...] = ()
) -> tuple[CropBuffer, tuple[Study, ...]]:
    """Patients whose fractured vertebrae have a bright bar with a box in two of five slices."""
    random = np.random.default_rng(seed)
    crops: list[Any] = []
    studies = []
    for number in range(patients):
        labels = [int(random.random() < 0.25) for _ in range(7)]
        mine = []
        for level, fractured in enumerate(labels, start=1):
            if f"C{level}" in missing:
                continue
            hu = random.normal(300, 120, (5, 16, 16))
            first = int(random.integers(0, 4))
            hu[first : first + 2, 4:6, 2:14] += 900 * fractured
            slice_labels = [int(fractured and first <= z < first + 2) for z in range(5)]
            vertebra = make_vertebra(
                hu.shape,
                study=f"1.{number}",
                level=f"C{level}",
                fractured=fractured,
                slice_labels=slice_labels,
                boxes={z: (2.0, 4.0, 12.0, 2.0) for z in range(5) if slice_labels[z]},
            )
            mine.append(vertebra)
            crops.append((vertebra, hu))
        name = f"1.{number}"
        studies.append(Study(name, name, "", (max(labels), *labels), tuple(mine)))
    buffer = replace(make_buffer(*crops), folder=folder, studies=tuple(studies))
    return buffer, tuple(studies)


def work(steps: int = 60, **options: Any) -> RoundWork:
    values = {"number": 1, "steps": steps, "rate": 3e-3, "layer_decay": 1.0, "ema": 0.0}
    values |= {"seed": 1, "log": lambda line: None}
    return RoundWork(**(values | options))  # type: ignore[arg-type]


def train(config: RunConfig, buffer: CropBuffer, **options: Any) -> tuple[Any, Trained]:
    model, inputs = SEQUENCE.start(config, None, COMPETITION)
    return model, SEQUENCE.train(model, inputs, buffer, config, work(**options))


def weights(model: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_a_round_teaches_vertebrae_and_patients() -> None:
    buffer, _ = make_round(40)
    model, _ = train(CONFIG, buffer)
    unseen, studies = make_round(40, seed=1)
    found = score_any(model, CONFIG.inputs, unseen, studies)
    labels = label_table(studies)
    assert found.patient is not None
    assert roc_auc_score(labels[:, 1:].ravel(), found.score.ravel()) > 0.9
    assert roc_auc_score(labels[:, 0], found.patient) > 0.85


def test_the_same_seed_gives_the_same_weights_and_another_does_not() -> None:
    buffer, _ = make_round(6)
    first, again, other = (
        weights(train(replace(CONFIG, augment=AugmentConfig()), buffer, steps=3, seed=seed)[0])
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_the_heads_are_trained_last_and_the_encoder_before_them() -> None:
    buffer, _ = make_round(8)
    without, _ = train(
        replace(CONFIG, sequence=replace(CONFIG.sequence, head_epochs=0)), buffer, steps=3
    )
    with_head, _ = train(CONFIG, buffer, steps=3)
    before, after = weights(without), weights(with_head)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not [name for name in changed if name.startswith("encoder.")]
    new, _ = SEQUENCE.start(CONFIG, None, COMPETITION)
    learnt = {n for n, value in weights(new).items() if not torch.equal(value, before[n])}
    assert {name.partition(".")[0] for name in learnt} == {"encoder", "classifier"}
    assert all(parameter.requires_grad for parameter in with_head.parameters())


def test_the_ema_covers_the_encoder_and_the_heads_are_those_trained_last() -> None:
    buffer, _ = make_round(8)
    model, trained = train(CONFIG, buffer, steps=6, ema=0.5)
    assert trained.ema is not None
    raw, _ = train(CONFIG, buffer, steps=6)
    for name, value in raw.named_parameters():
        assert torch.equal(model.state_dict()[name], value), name
        if not name.startswith("encoder."):
            assert torch.equal(trained.ema[name], value), name
    assert not all(torch.equal(trained.ema[n], v) for n, v in raw.named_parameters())


def test_on_patients_with_boxes_the_encoder_trains_like_that_of_the_slice_model() -> None:
    buffer, _ = make_round(6)
    config = replace(
        CONFIG,
        augment=AugmentConfig(),
        sequence=replace(CONFIG.sequence, sampled=1, head_epochs=0),
    )
    assert sum(SEQUENCE.count(study, config) for study in buffer.studies) == sum(
        KINDS["slice"].count(study, config) for study in buffer.studies
    )
    model, _ = train(config, buffer, steps=4)
    slices, inputs = KINDS["slice"].start(config, None, COMPETITION)
    KINDS["slice"].train(slices, inputs, buffer, config, work(steps=4))
    for name, value in slices.base_model.state_dict().items():
        torch.testing.assert_close(model.encoder.state_dict()[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_boxes_change_the_trained_weights(family: str) -> None:
    buffer, _ = make_round(6)
    config = replace(CONFIG, model=ModelConfig(family=family, patch=8, width=32, depth=1, heads=2))
    found = []
    for box_weight in (0.0, 1.0):
        settings = replace(config, train=replace(config.train, box_weight=box_weight))
        found.append(weights(train(settings, buffer, steps=3)[0]))
    assert not all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_slices_of_labelled_vertebrae_are_what_a_study_counts() -> None:
    crops = [make_vertebra((n, 8, 8), level=f"C{n}", fractured=0) for n in (3, 5, 7)]
    crops.append(make_vertebra((6, 8, 8), level="C6", fractured=None))
    assert SEQUENCE.count(Study("1.1", "1.1", "", None, tuple(crops)), CONFIG) == 3 + 5 + 7


def test_a_frozen_encoder_is_unchanged_and_its_heads_train_on_cached_features(
    tmp_path: Path,
) -> None:
    config = replace(CONFIG, sequence=replace(CONFIG.sequence, frozen=True))
    buffer, studies = make_round(10, folder=tmp_path)
    model, inputs = SEQUENCE.start(config, None, COMPETITION)
    before = weights(model)
    trained = SEQUENCE.train(model, inputs, buffer, config, work(steps=20))
    after = weights(model)
    assert trained.loss > 0
    assert all(torch.equal(before[n], after[n]) for n in before if n.startswith("encoder."))
    for head in ("classifier.weight", "positions.score.weight", "patient.levels.weight"):
        assert not torch.equal(before[head], after[head])
    assert list(tmp_path.glob("features/0/*/features.f16"))
    kept = score_any(model, inputs, buffer, studies)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    made = score_any(model, inputs, buffer, studies)
    np.testing.assert_allclose(kept.score, made.score, atol=0.02)


def test_merged_statistics_are_counted_anew_and_a_frozen_encoders_are_not() -> None:
    buffer, _ = make_round(6)
    for frozen in (False, True):
        config = replace(CONFIG, sequence=replace(CONFIG.sequence, frozen=frozen))
        model, inputs = SEQUENCE.start(config, None, COMPETITION)
        for name, value in model.named_buffers():
            if name.endswith("running_mean"):
                value.fill_(7.0)
        before = weights(model)
        SEQUENCE.refresh(model, inputs, buffer, config, work(steps=4))
        changed = {n for n, v in weights(model).items() if not torch.equal(v, before[n])}
        assert all("running" in name or "num_batches" in name for name in changed)
        assert bool(changed) != frozen


def test_a_slice_model_trained_here_is_a_start_with_its_opinion(tmp_path: Path) -> None:
    slices = build_model(CONFIG.model, CONFIG.inputs, 5)
    torch.nn.init.normal_(slices.classifier[-1].weight)
    save_model(slices, CONFIG.inputs, tmp_path / "m", card="")
    model, inputs = SEQUENCE.start(CONFIG, tmp_path / "m", COMPETITION)
    buffer, studies = make_round(2)
    index, output = run_sequence_model(
        cast(CervicalSequenceModel, model), inputs, buffer, [study.study for study in studies]
    )
    vertebra = KINDS["slice"].score(slices, CONFIG.inputs, buffer, studies)
    assert output.position_logits is not None
    # Five slices: a slice model's score is the mean of all their logits.
    np.testing.assert_allclose(
        output.position_logits.mean(dim=2)[index.crop >= 0],
        vertebra.score[index.crop >= 0],
        rtol=1e-3,
        atol=1e-3,
    )


def test_a_sequence_model_starts_with_all_its_weights(tmp_path: Path) -> None:
    buffer, studies = make_round(3)
    model, _ = train(CONFIG, buffer, steps=2)
    save_model(model, CONFIG.inputs, tmp_path / "m", card="")
    for found, inputs in (
        SEQUENCE.start(CONFIG, tmp_path / "m", COMPETITION),
        load_any(tmp_path / "m"),
    ):
        assert inputs == CONFIG.inputs
        again, expected = (score_any(m, inputs, buffer, studies) for m in (found, model))
        np.testing.assert_array_equal(again.score, expected.score)


def test_a_folder_that_is_no_model_is_no_start(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="model-invalid"):
        SEQUENCE.start(CONFIG, tmp_path, COMPETITION)


def test_missing_levels_have_no_score_and_calibrated_values_are_probabilities() -> None:
    buffer, studies = make_round(9, missing=("C2", "C6"))
    model, _ = train(CONFIG, buffer, steps=2)
    nothing = Study("1.99", "1.99", "", None, ())
    found = score_any(model, CONFIG.inputs, buffer, (*studies, nothing))
    assert found.patient is not None
    assert np.isnan(found.score[:9]).all(axis=0).tolist() == [False, True] + [False] * 3 + [
        True,
        False,
    ]
    assert np.isnan(found.score[9]).all()
    assert np.isnan(found.patient).tolist() == [False] * 9 + [True]
    labels = label_table(studies)
    fitted = fit_calibration(found.score[:9], labels, labels, COMPETITION, found.patient[:9])
    chances = fitted.probabilities(found.score, found.patient)
    assert ((chances >= 0) & (chances <= 1)).all()
    assert (found.peak[np.isnan(found.score)] == -1).all()


@pytest.mark.parametrize("kind", ["slice", MODEL_TYPE])
def test_two_missing_levels_and_one_of_three_slices_get_probabilities_and_a_warning(
    kind: str,
) -> None:
    hu = np.random.default_rng(0).normal(300, 120, (5, 16, 16))
    crops = [
        (make_vertebra((n, 16, 16), study="1.50", level=level), hu[:n])
        for level, n in (("C1", 5), ("C3", 3), ("C4", 5), ("C6", 5), ("C7", 5))
    ]
    study = Study("1.50", "1.50", "", None, tuple(vertebra for vertebra, _ in crops))
    model, inputs = KINDS[kind].start(CONFIG, None, COMPETITION)
    found = score_any(model, inputs, make_buffer(*crops), [study])
    assert np.flatnonzero(np.isnan(found.score[0])).tolist() == [1, 4]
    _, known = make_round(30)
    labels = label_table(known)
    fitted = fit_calibration(np.zeros((30, 7)), labels, labels, COMPETITION, np.zeros(30))
    chances = fitted.probabilities(found.score, found.patient)
    assert ((chances > 0) & (chances < 1)).all()
    assert list_warnings(study.vertebrae, COMPETITION) == [
        "C2 was not found in the scan: its probability is a prior, not a prediction",
        "C5 was not found in the scan: its probability is a prior, not a prediction",
        "C3 has only 3 slices",
    ]


def test_the_peak_is_the_slice_of_the_largest_weight() -> None:
    buffer, studies = make_round(4)
    model, _ = train(CONFIG, buffer, steps=40)
    found = score_any(model, CONFIG.inputs, buffer, studies)
    for row, study in enumerate(studies):
        for attribution in attribute_study(model, CONFIG.inputs, buffer, study.study):
            best = attribution.slices[int(np.argmax(attribution.weights))]
            assert found.peak[row, int(attribution.level[1]) - 1] == best


@pytest.mark.parametrize("kind", ["slice", MODEL_TYPE])
def test_an_attribution_has_weights_that_sum_to_one_and_the_slices_with_the_largest(
    kind: str,
) -> None:
    buffer, _ = make_round(2, missing=("C3",))
    model, inputs = KINDS[kind].start(CONFIG, None, COMPETITION)
    attributions = attribute_study(model, inputs, buffer, "1.1")
    assert [attribution.level for attribution in attributions] == [
        "C1",
        "C2",
        "C4",
        "C5",
        "C6",
        "C7",
    ]
    for attribution in attributions:
        assert sum(attribution.weights) == pytest.approx(1)
        assert attribution.slices == (0, 1, 2, 3, 4)
        assert len(attribution.keys) == 3
        lightest = min(
            attribution.weights[attribution.slices.index(key.z)] for key in attribution.keys
        )
        others = [
            w
            for z, w in zip(attribution.slices, attribution.weights, strict=True)
            if z not in {key.z for key in attribution.keys}
        ]
        assert max(others) <= lightest + 1e-6
        for key in attribution.keys:
            assert key.picture.shape == key.heat.shape == (16, 16)
            assert 0 <= key.heat.min() <= key.heat.max() <= 1
