"""Properties of the sequence model."""

import json
import math
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoConfig, AutoModel, ViTConfig

from storage_schemas.errors import UsageError
from tests.cohorts import make_buffer, make_vertebra
from training.config import InputConfig, Pooling
from training.models.sequence_inputs import gather_patients, index_patients, make_patient_pixels
from training.models.sequence_loss import LossWeights, sequence_loss
from training.models.sequence_model import (
    CervicalSequenceConfig,
    CervicalSequenceModel,
    SequenceOutput,
    load_sequence_model,
    noisy_or,
)
from training.models.slice_model import save_model

INPUTS = InputConfig(size=16, crop_mm=16, trim_mm=0)
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)


@pytest.fixture(params=POOLINGS)
def pooling(request: pytest.FixtureRequest) -> Pooling:
    found: Pooling = request.param
    return found


def build(pooling: Pooling = "lstm", positions: int = 6, seed: int = 0) -> CervicalSequenceModel:
    torch.manual_seed(seed)
    encoder = ViTConfig(
        image_size=16,
        patch_size=8,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    config = CervicalSequenceConfig(
        encoder, positions=positions, pooling=pooling, width=8, patient_width=8
    )
    return CervicalSequenceModel(config).eval()


def stir(model: CervicalSequenceModel) -> CervicalSequenceModel:
    """Change every weight, so that no correction is zero."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def positions_of(*counts: tuple[int, ...], positions: int = 6) -> Tensor:
    """Mask of the positions, from the number that each vertebra has."""
    return torch.arange(positions) < torch.tensor(counts)[..., None]


def pixels_for(valid: Tensor, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(int(valid.sum()), 3, 16, 16, generator=generator)


@torch.no_grad()
def read(model: CervicalSequenceModel, valid: Tensor, pixels: Tensor | None = None) -> Any:
    return model.eval()(pixels_for(valid) if pixels is None else pixels, valid)


WHOLE = positions_of((6, 6, 6, 6, 6, 6, 6), (6, 5, 4, 3, 2, 1, 6))
GAPS = positions_of((6, 0, 6, 3, 0, 6, 6), (0, 0, 0, 0, 0, 0, 1), (0,) * 7)


def test_weights_of_the_positions_there_are_sum_to_one_and_all_others_are_zero(
    pooling: Pooling,
) -> None:
    found = read(stir(build(pooling)), GAPS)
    torch.testing.assert_close(found.weights.sum(dim=2), GAPS.any(dim=2).float())
    assert not found.weights[~GAPS].any()
    assert found.weights.min() >= 0
    assert found.weights[0, 0].std() > 0.001


def test_missing_levels_and_short_ones_give_probabilities(pooling: Pooling) -> None:
    found = torch.sigmoid(read(stir(build(pooling)), GAPS).logits)
    assert found.shape == (3, 8)
    assert ((found > 0) & (found < 1)).all()


def test_a_vertebras_logit_does_not_depend_on_the_other_patients_and_levels(
    pooling: Pooling,
) -> None:
    model, pixels = stir(build(pooling)), pixels_for(WHOLE)
    together = read(model, WHOLE, pixels)
    alone = positions_of((0, 0, 0, 3, 0, 0, 0))
    start = int(WHOLE[0].sum() + WHOLE[1, :3].sum())
    found = read(model, alone, pixels[start : start + 3])
    torch.testing.assert_close(found.vertebra_logits[0, 3], together.vertebra_logits[1, 3])
    torch.testing.assert_close(found.weights[0, 3], together.weights[1, 3])


def test_masked_positions_change_nothing(pooling: Pooling) -> None:
    model, counts = stir(build(pooling)), (3, 3, 3, 3, 3, 3, 3)
    few, many = positions_of(counts, positions=3), positions_of(counts, positions=9)
    expected, found = read(model, few), read(model, many)
    torch.testing.assert_close(found.logits, expected.logits)
    torch.testing.assert_close(found.position_logits[..., :3], expected.position_logits)


def test_with_an_lstm_a_position_hears_of_its_neighbours_and_with_attention_alone_it_does_not() -> (
    None
):
    valid = positions_of((6, 0, 0, 0, 0, 0, 0))
    changed = pixels_for(valid)
    changed[5] += 3
    for pooling, hears in (("lstm", True), ("attention", False)):
        model = stir(build(pooling))  # type: ignore[arg-type]
        before, after = read(model, valid), read(model, valid, changed)
        first = (before.position_logits - after.position_logits)[0, 0, 0]
        assert bool(first.abs() > 1e-4) == hears


def test_the_patient_head_depends_on_every_level(pooling: Pooling) -> None:
    model, pixels = stir(build(pooling)), pixels_for(WHOLE[:1])
    before = read(model, WHOLE[:1], pixels).logits
    changed = pixels.clone()
    changed[-6:] += 3
    difference = (read(model, WHOLE[:1], changed).logits - before).abs()
    assert difference.min() > 1e-5


def test_a_new_model_is_its_slices_a_soft_maximum_and_a_noisy_or(pooling: Pooling) -> None:
    model = build(pooling)
    found = read(model, WHOLE)
    own = model.classifier(found.features)[..., 0]
    torch.testing.assert_close(found.position_logits[WHOLE], own[WHOLE])
    weights = own.masked_fill(~WHOLE, -math.inf).softmax(dim=2)
    torch.testing.assert_close(found.weights, weights)
    torch.testing.assert_close(found.vertebra_logits, (weights * own).sum(dim=2))
    torch.testing.assert_close(found.logits[:, 1:], found.vertebra_logits)
    broken = 1 - (1 - torch.sigmoid(found.vertebra_logits)).prod(dim=1)
    torch.testing.assert_close(torch.sigmoid(found.logits[:, 0]), broken)


@pytest.mark.parametrize("logit", [-60.0, -9.0, 0.0, 9.0, 60.0])
def test_the_noisy_or_is_finite_and_right_far_out(logit: float) -> None:
    logits = torch.full((1, 7), logit, requires_grad=True)
    found = noisy_or(logits)
    found.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    p = 1 / (1 + math.exp(-logit))
    expected = 1 - (1 - p) ** 7
    assert torch.sigmoid(found).item() == pytest.approx(expected, rel=1e-4, abs=2e-6)


def test_features_that_were_kept_read_as_their_pixels(pooling: Pooling) -> None:
    model = stir(build(pooling))
    found = read(model, GAPS)
    with torch.no_grad():
        again = model(valid=GAPS, features=found.features)
    torch.testing.assert_close(again.logits, found.logits)


def test_pixels_or_features_must_be_given_but_not_both() -> None:
    model = build()
    for options in ({}, {"valid": GAPS}, {"features": torch.zeros(3, 7, 6, 16)}):
        with pytest.raises(ValueError, match="forward needs `valid`"):
            model(**options)


def test_a_reloaded_model_gives_the_same_output(pooling: Pooling, tmp_path: Path) -> None:
    model = stir(build(pooling))
    save_model(model, INPUTS, tmp_path / "m", card="")
    loaded, inputs = load_sequence_model(tmp_path / "m")
    assert inputs == INPUTS
    assert loaded.config.encoder.model_type == "vit"
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert torch.equal(read(loaded, GAPS).logits, read(model, GAPS).logits)


def test_the_folder_opens_with_the_ecosystems_own_classes_and_without_remote_code(
    tmp_path: Path,
) -> None:
    save_model(build(), INPUTS, tmp_path / "m", card="")
    assert isinstance(AutoConfig.from_pretrained(tmp_path / "m"), CervicalSequenceConfig)
    assert isinstance(AutoModel.from_pretrained(tmp_path / "m"), CervicalSequenceModel)
    document = json.loads((tmp_path / "m" / "config.json").read_text())
    assert document["architectures"] == ["CervicalSequenceModel"]
    assert "auto_map" not in document


@pytest.mark.parametrize("harm", ["lost", "spare", "another shape", "other inputs"])
def test_an_incomplete_folder_is_refused_by_name(tmp_path: Path, harm: str) -> None:
    model, inputs = build(), INPUTS
    if harm == "lost":
        model.patient.levels = torch.nn.Identity()
    elif harm == "spare":
        model.spare = torch.nn.Linear(1, 1)
    elif harm == "another shape":
        model.patient.levels = torch.nn.Linear(3, 1)
    else:
        inputs = InputConfig(neighbours=5)
    save_model(model, inputs, tmp_path / "m", card="")
    with pytest.raises(UsageError) as caught:
        load_sequence_model(tmp_path / "m")
    assert (caught.value.kind, caught.value.key) == ("model-invalid", str(tmp_path / "m"))


def line_crops(patients: int, seed: int) -> tuple[Any, list[list[int]]]:
    """Crops of noise; a fractured one has a bright bar in two of its six slices."""
    random = np.random.default_rng(seed)
    crops, labels = [], []
    for number in range(patients):
        labels.append([int(random.random() < 0.3) for _ in range(7)])
        for level, broken in enumerate(labels[-1]):
            hu = random.normal(400, 150, (6, 16, 16))
            first = int(random.integers(0, 5))
            if broken:
                hu[first : first + 2, 4:6, 2:14] += 900
            vertebra = make_vertebra(
                hu.shape,
                study=f"1.{number}",
                level=f"C{level + 1}",
                fractured=broken,
                slice_labels=[int(broken and first <= z < first + 2) for z in range(6)],
            )
            crops.append((vertebra, hu))
    return make_buffer(*crops), labels


def test_a_model_learns_from_patient_labels_which_vertebrae_and_slices_are_fractured(
    pooling: Pooling,
) -> None:
    buffer, labels = line_crops(24, seed=0)
    index = index_patients(buffer, [f"1.{number}" for number in range(24)], 6, 0)
    batch = gather_patients(buffer, index, INPUTS)
    pixels, valid = make_patient_pixels(batch, INPUTS), batch["valid"]
    truth = torch.tensor(labels, dtype=torch.float32)
    slice_labels = torch.tensor([vertebra.slice_labels for vertebra in buffer.vertebrae]).view(
        24, 7, 6
    )
    overall = truth.amax(dim=1, keepdim=True)
    targets = {
        "patient_target": torch.cat([overall, truth], dim=1),
        "patient_weight": torch.full((24, 8), 1 / 8),
        "vertebra_target": truth,
        "position_target": slice_labels.float(),
    }
    model = build(pooling).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(80):
        optimizer.zero_grad()
        output: SequenceOutput = model(pixels, valid)
        loss = sequence_loss(output, targets, LossWeights())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.4 * losses[0]
    unseen, labels = line_crops(12, seed=1)
    index = index_patients(unseen, [f"1.{number}" for number in range(12)], 6, 0)
    batch = gather_patients(unseen, index, INPUTS)
    found = read(model, batch["valid"], make_patient_pixels(batch, INPUTS))
    truth = torch.tensor(labels)
    probability = torch.sigmoid(found.logits[:, 1:])
    error = functional.binary_cross_entropy(probability, truth.float())
    assert error < 0.5 * functional.binary_cross_entropy(
        truth.float().mean().expand(truth.shape), truth.float()
    )
    slice_labels = (
        torch.tensor([vertebra.slice_labels for vertebra in unseen.vertebrae]).view(12, 7, 6).bool()
    )
    # Two of six slices show it, and up to two more have it in a neighbouring channel.
    assert (found.weights * slice_labels).sum(dim=2)[truth == 1].mean() > 0.45
