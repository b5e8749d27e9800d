"""Cached features equal those of the encoder, and never those of another."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import ViTConfig

from tests.cohorts import make_buffer, make_vertebra
from training.config import InputConfig
from training.data.crop_buffer import CropBuffer
from training.models.feature_cache import cache_features, encoder_digest
from training.models.sequence_inputs import gather_patients, index_patients, make_patient_pixels
from training.models.sequence_model import (
    CervicalSequenceConfig,
    CervicalSequenceModel,
    load_sequence_model,
)
from training.models.slice_model import save_model

INPUTS = InputConfig(size=16, crop_mm=16, trim_mm=0)
STUDIES = ["1.1", "1.2"]


def build(seed: int = 0) -> CervicalSequenceModel:
    torch.manual_seed(seed)
    shape = {"image_size": 16, "patch_size": 8, "hidden_size": 16, "intermediate_size": 32}
    encoder = ViTConfig(**shape, num_hidden_layers=1, num_attention_heads=2)
    return CervicalSequenceModel(CervicalSequenceConfig(encoder, positions=4, width=8)).eval()


def buffer(changed: int = 0) -> CropBuffer:
    random = np.random.default_rng(0)
    crops = []
    for study, level, slices in (("1.1", "C1", 6), ("1.1", "C5", 3), ("1.2", "C7", 4)):
        hu = random.integers(-200, 900, (slices, 16, 16))
        hu[0, 8, 8] += changed * (level == "C5")
        crops.append((make_vertebra(hu.shape, study=study, level=level), hu))
    return make_buffer(*crops)


def keep(folder: Path, model: Any = None, of: Any = None, inputs: Any = INPUTS) -> Any:
    """The features, and how many crops had to be encoded."""
    of = of or buffer()
    made: list[None] = []
    found = cache_features(
        folder,
        model or build(),
        inputs,
        of,
        index_patients(of, STUDIES, 4, 0),
        lambda: made.append(None),
    )
    return found, len(made)


def test_kept_features_are_the_encoders_to_half_precision(tmp_path: Path) -> None:
    index = index_patients(buffer(), STUDIES, 4, 0)
    batch = gather_patients(buffer(), index, INPUTS)
    with torch.no_grad():
        expected = build()(make_patient_pixels(batch, INPUTS), batch["valid"]).features.numpy()
    for _ in range(2):
        np.testing.assert_allclose(keep(tmp_path)[0], expected, atol=2e-3)


def test_only_what_is_new_is_encoded(tmp_path: Path) -> None:
    assert keep(tmp_path)[1] == 3
    assert keep(tmp_path)[1] == 0
    assert keep(tmp_path, of=buffer(changed=50))[1] == 1


def test_another_encoder_or_other_inputs_leave_nothing_of_the_old(tmp_path: Path) -> None:
    first = keep(tmp_path)[0]
    second, made = keep(tmp_path, build(seed=1))
    assert made == 3
    assert np.abs(first - second).max() > 0.05
    assert keep(tmp_path, build(seed=1), inputs=replace(INPUTS, crop_mm=12))[1] == 3
    assert len(list(tmp_path.iterdir())) == 1


def test_training_the_heads_keeps_the_cached_features(tmp_path: Path) -> None:
    keep(tmp_path)
    model = build()
    torch.nn.init.ones_(model.classifier.weight)
    assert keep(tmp_path, model)[1] == 0


def test_a_reloaded_encoder_is_the_same_one(tmp_path: Path) -> None:
    save_model(build(), INPUTS, tmp_path / "m", card="")
    loaded, inputs = load_sequence_model(tmp_path / "m")
    assert encoder_digest(loaded, inputs) == encoder_digest(build(), INPUTS)


def test_what_a_kill_left_half_written_is_made_again(tmp_path: Path) -> None:
    expected = keep(tmp_path)[0]
    (place,) = tmp_path.iterdir()
    with (place / "features.f16").open("ab") as stream:
        stream.write(b"cut")
    changed = keep(tmp_path, of=buffer(changed=50))[0]
    np.testing.assert_array_equal(keep(tmp_path)[0], expected)
    np.testing.assert_array_equal(keep(tmp_path, of=buffer(changed=50))[0], changed)


def test_studies_without_crops_have_features_of_zero(tmp_path: Path) -> None:
    of = buffer()
    found = cache_features(tmp_path, build(), INPUTS, of, index_patients(of, ["1.9"], 4, 0))
    assert found.shape == (1, 7, 4, 16)
    assert not found.any()
