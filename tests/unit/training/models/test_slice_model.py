import json
import shutil
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForImageClassification,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    ViTModel,
    pipeline,
)

from storage_schemas.errors import UsageError
from training.config import InputConfig, ModelConfig
from training.data.inputs import normalise
from training.models.slice_model import (
    LABEL,
    PRIOR,
    build_model,
    load_model,
    save_model,
    start_model,
)

INPUTS = InputConfig(
    size=32, crop_mm=60.0, windows=((-200.0, 1300.0),), mean=(0.4, 0.5, 0.6), trim_mm=3.0
)
FAMILIES: tuple[str, ...] = ("vit", "resnet")
WEIGHTS = "model.safetensors"
Harm = Callable[[Path], None]


def settings(family: str) -> ModelConfig:
    return ModelConfig(family=family, patch=8, width=32, depth=2, heads=2)


def build(family: str, seed: int = 0) -> PreTrainedModel:
    return build_model(settings(family), INPUTS, seed).eval()


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def folder(family: str, tmp_path: Path) -> Path:
    save_model(build(family), INPUTS, tmp_path / "m", card="# a card\n")
    return tmp_path / "m"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*address: Any) -> None:
        raise AssertionError(f"the network was asked: {address}")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found: Tensor = model.eval()(pixel_values=pixels).logits
    return found


def assert_same_weights(model: PreTrainedModel, other: PreTrainedModel) -> None:
    found, expected = model.state_dict(), other.state_dict()
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def change(folder: Path, harm: Callable[[dict[str, Tensor]], object]) -> None:
    weights = load_file(folder / WEIGHTS)
    harm(weights)
    save_file(weights, folder / WEIGHTS, {"format": "pt"})


def encoder_weight(weights: dict[str, Tensor]) -> str:
    return next(name for name in weights if "encoder" in name and weights[name].ndim > 1)


def test_a_new_model_has_one_logit_that_starts_at_the_prior(family: str) -> None:
    model = build(family)
    assert logits(model).shape == (3, 1)
    assert model.config.id2label == {0: LABEL}
    torch.nn.init.zeros_(next(model.classifier.parameters()))
    assert torch.sigmoid(logits(model)).flatten().tolist() == pytest.approx([PRIOR] * 3)


def test_the_seed_decides_the_weights(family: str) -> None:
    assert torch.equal(logits(build(family, 1)), logits(build(family, 1)))
    assert not torch.equal(logits(build(family, 1)), logits(build(family, 2)))


@pytest.mark.parametrize("patch", [8, 16, 32])
def test_a_feature_of_a_residual_network_stands_for_one_patch(patch: int) -> None:
    config = ModelConfig(family="resnet", patch=patch, width=32, depth=1)
    model = build_model(config, replace(INPUTS, size=64), 0)
    features = model.base_model(torch.zeros(1, 3, 64, 64)).last_hidden_state
    assert features.shape == (1, 32, 64 // patch, 64 // patch)


def test_patches_that_do_not_fill_the_input_are_refused(family: str) -> None:
    with pytest.raises(UsageError, match="config-invalid"):
        build_model(settings(family), replace(INPUTS, size=36), 0)


def test_a_reloaded_model_is_the_saved_one_bit_for_bit(family: str, folder: Path) -> None:
    loaded, inputs = load_model(folder)
    assert inputs == INPUTS
    assert_same_weights(loaded, build(family))


def test_a_reloaded_vit_gives_the_same_logits(tmp_path: Path) -> None:
    save_model(build("vit"), INPUTS, tmp_path / "m", card="")
    assert torch.equal(logits(load_model(tmp_path / "m")[0]), logits(build("vit")))


def test_a_reloaded_residual_network_gives_the_same_logits(tmp_path: Path) -> None:
    save_model(build("resnet"), INPUTS, tmp_path / "m", card="")
    assert torch.equal(logits(load_model(tmp_path / "m")[0]), logits(build("resnet")))


def test_trained_statistics_of_a_residual_network_are_saved_too(tmp_path: Path) -> None:
    model = build("resnet").train()
    model(pixel_values=torch.ones(4, 3, 32, 32))
    save_model(model, INPUTS, tmp_path / "m", card="")
    assert_same_weights(load_model(tmp_path / "m")[0], model)


def test_a_folder_holds_what_the_ecosystem_expects_and_no_pickle(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        WEIGHTS,
        "preprocessor_config.json",
    ]


def test_saving_again_replaces_everything(folder: Path, family: str) -> None:
    (folder / "old.json").write_text("{}")
    save_model(build(family, seed=5), INPUTS, folder, card="new", documents={"more.json": [1]})
    assert not (folder / "old.json").exists()
    assert json.loads((folder / "more.json").read_text()) == [1]
    assert_same_weights(load_model(folder)[0], build(family, seed=5))
    assert [path.name for path in folder.parent.iterdir()] == ["m"]


def test_equal_models_are_equal_bytes(family: str, folder: Path, tmp_path: Path) -> None:
    save_model(build(family), INPUTS, tmp_path / "again", card="# a card\n")
    for path in folder.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def drop_weight(folder: Path) -> None:
    change(folder, lambda weights: weights.pop(encoder_weight(weights)))


def drop_head(folder: Path) -> None:
    change(folder, lambda weights: weights.pop(next(n for n in weights if "classifier" in n)))


def add_weight(folder: Path) -> None:
    change(folder, lambda weights: weights.update({"spare.weight": torch.zeros(3)}))


def reshape_weight(folder: Path) -> None:
    def harm(weights: dict[str, Tensor]) -> None:
        name = encoder_weight(weights)
        weights[name] = torch.cat([weights[name], weights[name]])

    change(folder, harm)


def widen_head(folder: Path) -> None:
    def harm(weights: dict[str, Tensor]) -> None:
        name = next(n for n in weights if "classifier" in n and weights[n].ndim == 2)
        weights[name] = weights[name].repeat(2, 1)

    change(folder, harm)


def pickle_weights(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def cut_weights(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])


def empty_weights(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"")


def remove(name: str) -> Harm:
    return lambda folder: (folder / name).unlink()


def write(name: str, text: str) -> Harm:
    def harm(folder: Path) -> None:
        (folder / name).write_text(text)

    return harm


ENCODER_HARMS: dict[str, Harm] = {
    "a weight is missing": drop_weight,
    "a weight has another shape": reshape_weight,
    "weights are pickled only": pickle_weights,
    "no config": remove("config.json"),
    "config is no JSON": write("config.json", "{"),
    "config of no known model": write("config.json", '{"model_type": "novel"}'),
    "config of a model of text": write("config.json", '{"model_type": "bert"}'),
    "no folder": shutil.rmtree,
}
HARMS: dict[str, Harm] = ENCODER_HARMS | {
    "the head is missing": drop_head,
    "the head has another shape": widen_head,
    "a weight is spare": add_weight,
    "no preprocessor": remove("preprocessor_config.json"),
    "preprocessor of others": write("preprocessor_config.json", '{"image_mean": [0, 0, 0]}'),
    "preprocessor is a list": write("preprocessor_config.json", "[]"),
}
CUT: dict[str, Harm] = {"weights are cut short": cut_weights, "weights are empty": empty_weights}


@pytest.mark.parametrize("harm", HARMS)
def test_an_incomplete_folder_is_refused_by_name(folder: Path, harm: str) -> None:
    HARMS[harm](folder)
    with pytest.raises(UsageError) as caught:
        load_model(folder)
    assert (caught.value.kind, caught.value.key) == ("model-invalid", str(folder))


@pytest.mark.parametrize("harm", ENCODER_HARMS)
def test_a_checkpoint_with_an_incomplete_encoder_is_refused_by_name(
    folder: Path, harm: str
) -> None:
    ENCODER_HARMS[harm](folder)
    with pytest.raises(UsageError) as caught:
        start_model(folder, INPUTS, 0)
    assert (caught.value.kind, caught.value.key) == ("model-invalid", str(folder))


@pytest.mark.parametrize("harm", CUT)
@pytest.mark.parametrize("reader", [load_model, lambda folder: start_model(folder, INPUTS, 0)])
def test_damaged_weights_are_refused_by_name(
    folder: Path, harm: str, reader: Callable[[Path], object]
) -> None:
    CUT[harm](folder)
    with pytest.raises(UsageError, match="model-invalid"):
        reader(folder)


def test_inputs_of_another_version_are_refused_as_part_of_the_model(folder: Path) -> None:
    path = folder / "preprocessor_config.json"
    document = json.loads(path.read_text())
    del document["cspine_inputs"]["crop_mm"]
    path.write_text(json.dumps(document))
    with pytest.raises(UsageError) as caught:
        load_model(folder)
    assert (caught.value.kind, caught.value.key) == ("model-invalid", str(folder))


@pytest.mark.usefixtures("no_network")
def test_the_folder_opens_as_any_image_classifier_without_network(
    folder: Path, family: str
) -> None:
    model = AutoModelForImageClassification.from_pretrained(folder)
    assert model.config.model_type == family
    assert_same_weights(model, build(family))


@pytest.mark.usefixtures("no_network")
def test_the_transformers_pipeline_predicts_the_same_as_training(folder: Path, family: str) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    (answer,) = pipeline("image-classification", model=str(folder))(Image.fromarray(picture))
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        logit = build(family)(pixel_values=normalise(pixels, INPUTS)).logits
    assert answer["label"] == LABEL
    assert answer["score"] == pytest.approx(torch.sigmoid(logit).item(), abs=1e-5)


def write_checkpoint(folder: Path, size: int = 48) -> ViTForImageClassification:
    torch.manual_seed(7)
    shape: dict[str, int] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = ViTConfig(
        image_size=size, patch_size=16, num_attention_heads=2, num_labels=1000, **shape
    )
    model = ViTForImageClassification(config)
    model.save_pretrained(folder)
    ViTImageProcessorPil(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]).save_pretrained(
        folder
    )
    return model


@pytest.mark.usefixtures("no_network")
def test_a_checkpoint_of_1000_labels_gets_a_new_head_and_keeps_all_else(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path)
    model, inputs = start_model(tmp_path, INPUTS, seed=0)
    assert (model.config.num_labels, model.config.id2label) == (1, {0: LABEL})
    assert model.config.problem_type == "multi_label_classification"
    assert model.classifier.weight.shape == (1, 32)
    kept = {k: v for k, v in checkpoint.state_dict().items() if not k.startswith("classifier")}
    for name, tensor in kept.items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert set(model.state_dict()) - set(kept) == {"classifier.weight", "classifier.bias"}
    assert inputs == replace(INPUTS, size=48, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))


def test_the_seed_decides_the_new_head(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    heads = [start_model(tmp_path, INPUTS, seed)[0].classifier.weight for seed in (1, 1, 2)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_an_encoder_alone_is_a_checkpoint(tmp_path: Path) -> None:
    ViTModel(
        ViTConfig(
            image_size=32,
            patch_size=16,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
        ),
        add_pooling_layer=False,
    ).save_pretrained(tmp_path)
    model, inputs = start_model(tmp_path, INPUTS, 0)
    assert model.config.num_labels == 1
    assert inputs == INPUTS


def test_a_model_that_training_wrote_is_a_checkpoint_with_its_head(
    folder: Path, family: str
) -> None:
    model, inputs = start_model(folder, replace(INPUTS, mean=(0, 0, 0)), seed=9)
    assert_same_weights(model, build(family))
    assert inputs == INPUTS


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.5], "grey"])
def test_a_normalisation_that_is_not_of_three_channels_is_refused(
    tmp_path: Path, values: Any
) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": values}))
    with pytest.raises(UsageError, match="model-invalid"):
        start_model(tmp_path, INPUTS, 0)


def test_models_declare_that_their_loss_is_a_mean(folder: Path) -> None:
    assert load_model(folder)[0].accepts_loss_kwargs is False
    assert start_model(folder, INPUTS, 0)[0].accepts_loss_kwargs is False
