"""A killed round resumes from its checkpoint to the same weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from storage_schemas.errors import RunError
from tests.cohorts import make_buffer, make_vertebra
from training import durable
from training.config import InputConfig, ModelConfig, RunConfig, TrainConfig
from training.data.crop_buffer import CropBuffer
from training.models.slice_model import build_model
from training.models.slice_training import train_slices
from training.optimization import checkpoints
from training.optimization.checkpoints import (
    Progress,
    read_checkpoint,
    read_last_weights,
    write_checkpoint,
    write_last_weights,
)
from training.optimization.trainer import RoundWork, Trained

INPUTS = InputConfig(size=32, crop_mm=32, trim_mm=0)
CONFIG = RunConfig(
    inputs=INPUTS, train=TrainConfig(batch_size=2, accumulation=2, checkpoint_steps=2)
)
STEPS = 9


class Killed(BaseException):
    """As a signal would."""


def build(family: str) -> PreTrainedModel:
    config = ModelConfig(family=family, patch=16, width=32, depth=1, heads=2)
    model = build_model(config, INPUTS, seed=0)
    if family == "vit":
        model.config.hidden_dropout_prob = 0.2
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.2  # its own random numbers must be reproduced too
    return model


def crops() -> CropBuffer:
    hu = np.random.default_rng(0).integers(-400, 1200, (2, 6, 32, 32))
    fractured = make_vertebra((6, 32, 32), fractured=1, slice_labels=[0, 1, 1, 0, 1, 0])
    return make_buffer((fractured, hu[0]), (make_vertebra((6, 32, 32)), hu[1]))


def train(
    model: PreTrainedModel, checkpoint: Path | None, until: int = STEPS, number: int = 1
) -> Trained:
    def log(line: Mapping[str, Any]) -> None:
        if line["step"] > until:
            raise Killed

    work = RoundWork(
        number=number,
        steps=STEPS,
        rate=1e-3,
        layer_decay=0.7,
        ema=0.3,
        seed=5,
        log=log,
        checkpoint=checkpoint,
    )
    return train_slices(model, INPUTS, crops(), CONFIG, work)


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


FAMILIES: tuple[str, ...] = ("vit", "resnet")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_killed_round_ends_with_the_weights_of_one_that_was_not(
    family: str, tmp_path: Path
) -> None:
    whole = build(family)
    expected = train(whole, None)
    place = tmp_path / "round.safetensors"
    for until in (4, 6):
        with pytest.raises(Killed):
            train(build(family), place, until)
        found = read_checkpoint(place)
        assert found is not None
        assert found[0].step == until
    resumed = build(family)
    trained = train(resumed, place)
    assert_same(resumed.state_dict(), whole.state_dict())
    assert trained.ema is not None
    assert expected.ema is not None
    assert_same(trained.ema, expected.ema)
    assert trained.loss == pytest.approx(expected.loss)


def test_a_killed_round_of_a_partly_frozen_model_resumes(tmp_path: Path) -> None:
    def build_frozen() -> PreTrainedModel:
        model = build("vit")
        model.base_model.embeddings.requires_grad_(False)
        return model

    whole, place = build_frozen(), tmp_path / "round.safetensors"
    train(whole, None)
    with pytest.raises(Killed):
        train(build_frozen(), place, until=5)
    resumed = build_frozen()
    train(resumed, place)
    assert_same(resumed.state_dict(), whole.state_dict())


def test_a_checkpoint_of_another_round_is_not_gone_on_from(tmp_path: Path) -> None:
    place = tmp_path / "round.safetensors"
    with pytest.raises(Killed):
        train(build("vit"), place, until=5)
    found, expected = build("vit"), build("vit")
    train(found, place, number=2)
    train(expected, None, number=2)
    assert_same(found.state_dict(), expected.state_dict())


@pytest.mark.parametrize("harm", ["cut", "empty", "noise"])
def test_a_damaged_checkpoint_starts_the_round_again(tmp_path: Path, harm: str) -> None:
    place = tmp_path / "round.safetensors"
    with pytest.raises(Killed):
        train(build("vit"), place, until=5)
    data = place.read_bytes()
    place.write_bytes({"cut": data[:-50], "empty": b"", "noise": b"\xff" * 100}[harm])
    assert read_checkpoint(place) is None
    found, expected = build("vit"), build("vit")
    train(found, place)
    train(expected, None)
    assert_same(found.state_dict(), expected.state_dict())


def test_a_checkpoint_is_one_safetensors_file_and_replaced_atomically(tmp_path: Path) -> None:
    place = tmp_path / "round.safetensors"
    train(build("vit"), place)
    assert [path.name for path in tmp_path.iterdir()] == [place.name]
    with safe_open(place, "pt") as stream:
        assert stream.metadata()["step"] == "8"


@pytest.mark.parametrize("when", ["while the tensors are written", "while they are moved"])
def test_a_full_disk_leaves_the_checkpoint_before_and_no_half_of_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    place = tmp_path / "round.safetensors"
    write_checkpoint(place, Progress(1, 9, 2, 0.5), {"model.a": torch.ones(3)})

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    where: tuple[Any, str] = (checkpoints, "save_file") if "written" in when else (durable, "sync")
    monkeypatch.setattr(*where, full)
    with pytest.raises(RunError, match=r"No space left.*run-unwritable"):
        write_checkpoint(place, Progress(1, 9, 4, 0.5), {"model.a": torch.ones(3)})
    found = read_checkpoint(place)
    assert found is not None
    assert found[0].step == 2
    assert [path.name for path in tmp_path.iterdir()] == [place.name]


def test_last_weights_read_back_exactly_and_a_full_disk_leaves_no_partial_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, weights = tmp_path / "01.safetensors", build("resnet").state_dict()
    write_last_weights(place, weights)
    assert_same(read_last_weights(place), weights)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable, "sync", full)
    with pytest.raises(RunError, match=r"No space left.*run-unwritable"):
        write_last_weights(tmp_path / "02.safetensors", weights)
    assert [path.name for path in tmp_path.iterdir()] == [place.name]
