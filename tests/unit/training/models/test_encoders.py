"""Encoders of any family keep their pretrained weights when channels or pixels are added."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from transformers import (
    AutoModel,
    ConvNextV2Config,
    Dinov2Config,
    PreTrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    SwinConfig,
    ViTConfig,
    ViTForImageClassification,
)

from storage_schemas.errors import UsageError
from training.config import InputConfig, ModelConfig
from training.models.encoders import (
    build_encoder,
    count_features,
    make_encoder,
    read_features,
    run_encoder,
    start_encoder,
    widen_channels,
)
from training.models.slice_model import build_model

INPUTS = InputConfig(size=32, crop_mm=32, trim_mm=0)
SIX = replace(INPUTS, neighbours=5, mask=True)


def configs() -> dict[str, PreTrainedConfig]:
    shape = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2}
    return {
        "vit": ViTConfig(**shape, num_attention_heads=2, intermediate_size=64),
        "dinov2": Dinov2Config(**shape, num_attention_heads=2),
        "convnextv2": ConvNextV2Config(hidden_sizes=[16, 32], depths=[1, 1], num_stages=2),
        "resnet": ResNetConfig(
            embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic"
        ),
        "swin": SwinConfig(
            image_size=32,
            patch_size=2,
            embed_dim=16,
            depths=[1, 1],
            num_heads=[2, 2],
            window_size=4,
        ),
    }


FAMILIES = sorted(configs())


def make(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return make_encoder(configs()[family]).eval()


def noise(channels: int = 3, size: int = 32) -> Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def pooled(encoder: PreTrainedModel, pixels: Tensor) -> Tensor:
    return read_features(run_encoder(encoder.eval(), pixels)).pooled


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_pooled_and_of_a_square_of_patches(family: str) -> None:
    encoder = make(family)
    found = read_features(run_encoder(encoder, noise()))
    side = math.isqrt(found.patches.shape[1])
    assert found.pooled.shape == (2, count_features(encoder.config))
    assert found.patches.shape == (2, side * side, found.pooled.shape[1])
    assert found.averaged == (family not in ("vit", "dinov2"))


@pytest.mark.parametrize("family", FAMILIES)
def test_more_channels_change_nothing_while_they_are_zero(family: str) -> None:
    pixels = noise()
    expected = pooled(make(family), pixels)
    wide = widen_channels(make(family), 6)
    filled = torch.cat([pixels, torch.zeros(2, 3, 32, 32)], dim=1)
    assert torch.equal(pooled(wide, filled), expected)
    assert wide.config.num_channels == 6


@pytest.mark.parametrize("family", FAMILIES)
def test_old_kernels_are_kept_and_new_ones_get_gradients_at_once(family: str) -> None:
    narrow, wide = make(family), widen_channels(make(family), 6)
    kept = narrow.state_dict()
    changed = [name for name, value in wide.state_dict().items() if value.shape != kept[name].shape]
    (kernel,) = changed
    assert torch.equal(wide.state_dict()[kernel][:, :3], kept[kernel])
    assert all(torch.equal(kept[n], v) for n, v in wide.state_dict().items() if n != kernel)
    read_features(run_encoder(wide, noise(6))).pooled.square().sum().backward()
    gradient = dict(wide.named_parameters())[kernel].grad
    assert gradient is not None
    assert gradient[:, 3:].abs().amax(dim=(0, 2, 3)).min() > 0


def test_fewer_channels_are_refused() -> None:
    with pytest.raises(UsageError, match="config-invalid"):
        widen_channels(make("vit"), 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_input_of_another_size_is_taken_and_no_weight_is_new(family: str) -> None:
    encoder = make(family)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    assert pooled(encoder, noise(size=64)).shape == (2, 32)
    assert all(torch.equal(encoder.state_dict()[name], value) for name, value in before.items())


def test_position_embeddings_are_interpolated_for_a_larger_input() -> None:
    encoder = make("vit")
    learnt = encoder.embeddings.position_embeddings.detach()
    larger = make_encoder(ViTConfig(**{**encoder.config.to_dict(), "image_size": 64}))
    weights = encoder.state_dict()
    grid = learnt[:, 1:].reshape(1, 4, 4, 32).permute(0, 3, 1, 2)
    grid = functional.interpolate(grid, (8, 8), mode="bicubic", align_corners=False)
    weights["embeddings.position_embeddings"] = torch.cat(
        [learnt[:, :1], grid.permute(0, 2, 3, 1).reshape(1, 64, 32)], dim=1
    )
    larger.load_state_dict(weights)
    pixels = noise(size=64)
    torch.testing.assert_close(pooled(encoder, pixels), pooled(larger, pixels))


def test_a_built_encoder_is_that_of_the_slice_model_of_the_same_seed() -> None:
    config = ModelConfig(family="resnet", patch=8, width=32, depth=1)
    encoder, head = build_encoder(config, SIX, 3)
    reference = build_model(config, INPUTS, 3).eval()
    filled = torch.cat([noise(), torch.zeros(2, 3, 32, 32)], dim=1)
    found = head(pooled(encoder, filled))
    with torch.no_grad():
        assert torch.equal(found, reference(noise()).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_any_familys_folder_is_a_start(family: str, tmp_path: Path) -> None:
    encoder = make(family)
    encoder.save_pretrained(tmp_path)
    started, normalisation = start_encoder(tmp_path, SIX)
    assert normalisation == {}
    filled = torch.cat([noise(), torch.zeros(2, 3, 32, 32)], dim=1)
    assert torch.equal(pooled(started, filled), pooled(encoder, noise()))


def test_a_classifiers_encoder_is_a_start_with_its_normalisation(tmp_path: Path) -> None:
    torch.manual_seed(1)
    classifier = ViTForImageClassification(configs()["vit"]).eval()
    classifier.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.2, 0.3]}')
    started, normalisation = start_encoder(tmp_path, INPUTS)
    assert normalisation == {"mean": (0.1, 0.2, 0.3)}
    assert torch.equal(pooled(started, noise()), pooled(classifier.vit, noise()))


def test_a_folder_that_lacks_a_weight_of_the_encoder_is_refused_by_name(tmp_path: Path) -> None:
    make("vit").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights[next(name for name in weights if ".0." in name)]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match="1 weights of the encoder") as caught:
        start_encoder(tmp_path, INPUTS)
    assert (caught.value.kind, caught.value.key) == ("model-invalid", str(tmp_path))


def test_pickled_weights_and_models_of_text_are_refused(tmp_path: Path) -> None:
    encoder = make("vit")
    encoder.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UsageError, match="model-invalid"):
        start_encoder(tmp_path, INPUTS)
    encoder.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UsageError, match="model-invalid"):
        start_encoder(tmp_path, INPUTS)


def test_an_encoder_made_here_has_no_pooler_that_nothing_trains() -> None:
    assert not [name for name in make("vit").state_dict() if name.startswith("pooler")]
    assert type(make("vit")) is type(AutoModel.from_config(configs()["vit"]))
