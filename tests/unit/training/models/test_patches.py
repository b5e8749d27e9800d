import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from training.config import InputConfig, ModelConfig
from training.models.patches import PatchReader, box_loss
from training.models.slice_model import build_model

INPUTS = InputConfig(size=64)
FAMILIES: tuple[str, ...] = ("vit", "resnet")
HIGH, LOW = 9.0, -9.0


def build(family: str) -> PreTrainedModel:
    config = ModelConfig(family=family, patch=16, width=32, depth=2, heads=2)
    return build_model(config, INPUTS, seed=0).eval()


def pictures(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def nine(*high: int) -> Tensor:
    logits = torch.full((1, 9), LOW)
    logits[0, list(high)] = HIGH
    return logits


BOX = torch.tensor([[0.0, 0, 0, 0, 1, 1, 0, 0, 0]])
NO_BOX = torch.zeros(1, 9)


@pytest.mark.parametrize(
    ("logits", "covered", "whole", "least", "most"),
    [
        (nine(4), BOX, False, 0, 0.02),
        (nine(5), BOX, False, 0, 0.02),
        (nine(4, 5), BOX, False, 0, 0.02),
        (nine(), NO_BOX, True, 0, 0.02),
        (nine(), BOX, False, 8, 9.5),
        (nine(0), BOX, False, 8, 9.5),
        (nine(4, 0), BOX, False, 0.3, 9.5),
        (nine(0), NO_BOX, True, 9, 9.5),
    ],
    ids=[
        "found in the box",
        "found elsewhere in the box",
        "all of the box",
        "intact and no logit",
        "missed",
        "found beside the box",
        "found in and beside the box",
        "false alarm",
    ],
)
def test_the_loss_is_small_only_where_the_box_alone_speaks(
    logits: Tensor, covered: Tensor, whole: bool, least: float, most: float
) -> None:
    loss = box_loss(logits, covered, torch.tensor([whole])).item()
    assert least <= loss <= most


def test_one_large_logit_is_enough_for_a_box_and_its_other_patches_are_left_alone() -> None:
    logits = nine(4).requires_grad_()
    (gradient,) = torch.autograd.grad(box_loss(logits, BOX, torch.tensor([False])), logits)
    assert gradient[0, 5].abs() < 1e-6


def test_a_slice_whose_fracture_nobody_drew_gives_no_gradient() -> None:
    logits = torch.randn(3, 9, generator=torch.Generator().manual_seed(1)).requires_grad_()
    covered = torch.cat([BOX, NO_BOX, NO_BOX])
    loss = box_loss(logits, covered, torch.tensor([False, False, True]))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.isfinite().all()
    assert gradient.abs().amax(dim=1).gt(0).tolist() == [True, False, True]


def test_a_batch_without_boxes_or_intact_slices_has_no_box_loss() -> None:
    logits = torch.ones(2, 9).requires_grad_()
    loss = box_loss(logits, NO_BOX.repeat(2, 1), torch.tensor([False, False]))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == 0
    assert not gradient.any()


@pytest.mark.parametrize(("covered", "judged"), [(0.01, True), (0.1, False), (0.2, True)])
def test_a_patch_that_the_box_just_touches_is_ignored(covered: float, judged: bool) -> None:
    logits = torch.zeros(1, 9).requires_grad_()
    box = BOX.clone()
    box[0, 3] = covered
    (gradient,) = torch.autograd.grad(box_loss(logits, box, torch.tensor([False])), logits)
    assert bool(gradient[0, 3] != 0) is judged


@torch.no_grad()
def test_the_patches_of_a_residual_network_make_up_its_logit() -> None:
    model = build("resnet")
    reader = PatchReader(model)
    whole = model(pixel_values=pictures()).logits[:, 0]
    patches = reader.logits()
    assert patches.shape == (2, 16)
    bias = model.classifier[-1].bias[0]
    torch.testing.assert_close((patches - bias).mean(dim=1) * 16 / 3, whole - bias)


@torch.no_grad()
def test_the_patches_of_a_vit_are_what_its_classifier_makes_of_their_tokens() -> None:
    model = build("vit")
    reader = PatchReader(model)
    whole = model(pixel_values=pictures()).logits[:, 0]
    patches = reader.logits()
    tokens = model.classifier(model.vit(pixel_values=pictures()).last_hidden_state)[..., 0]
    torch.testing.assert_close(tokens[:, 0], whole)
    torch.testing.assert_close(tokens[:, 1:], patches)


@pytest.mark.parametrize("patch", [3, 9, 14])
def test_patches_of_a_vit_lie_row_by_row(patch: int) -> None:
    model = build("vit")
    reader = PatchReader(model)
    pixels = pictures(1).requires_grad_()
    model(pixel_values=pixels)
    (gradient,) = torch.autograd.grad(reader.logits()[0, patch], pixels)
    used = functional.avg_pool2d(gradient.square().sum(dim=1), 16).flatten()
    assert used.argmax() == patch


@torch.no_grad()
def test_patches_of_a_residual_network_lie_row_by_row() -> None:
    model = build("resnet")
    reader = PatchReader(model)
    features = model.resnet(pixel_values=pictures()).last_hidden_state
    head = model.classifier[-1]
    predicted = (
        functional.conv2d(features, head.weight[:, :, None, None])[:, 0] * 3 / 16 + head.bias
    )
    torch.testing.assert_close(reader.logits().view(2, 4, 4), predicted)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_closed_reader_leaves_no_hook(family: str) -> None:
    model = build(family)
    reader = PatchReader(model)
    assert PatchReader.reads(model)
    assert len(model.base_model._forward_hooks) == 1
    reader.close()
    assert not any(module._forward_hooks for module in model.modules())


def test_patch_logits_before_a_forward_pass_are_an_error() -> None:
    with pytest.raises(RuntimeError, match="forward pass"):
        PatchReader(build("vit")).logits()
