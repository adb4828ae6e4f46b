"""Backbones that cannot train on one image a rank say so in a line that names the way out."""

import pytest
import torch

from harness.config import BackboneConfig
from harness.errors import UserError
from harness.model.backbone import make_backbone
from harness.model.trainable import training_pass

REFUSED = {
    "one embedding": (BackboneConfig(), 32, "embedding.1", "backbone.feature_dim=0"),
    "one value of the last map": (
        BackboneConfig(feature_dim=0),
        8,
        "body.13",
        "backbone.norm=group",
    ),
    "a torchvision network's last map": (
        BackboneConfig(name="resnet18", feature_dim=0),
        32,
        "body.layer4",
        "raise data.image_size",
    ),
    "a torchvision network's embedding": (
        BackboneConfig(name="resnet18"),
        64,
        "embedding.1",
        "backbone.feature_dim=0",
    ),
}
TRAINED = {
    "norm=group": (BackboneConfig(norm="group"), 8),
    "norm=none": (BackboneConfig(norm="none"), 8),
    "no embedding": (BackboneConfig(feature_dim=0), 16),
    "a larger last map": (BackboneConfig(name="resnet18", feature_dim=0), 64),
}


@pytest.mark.parametrize("name", REFUSED)
def test_one_image_is_refused_and_two_are_not(name: str) -> None:
    config, size, layer, way_out = REFUSED[name]
    backbone = make_backbone(config, 3, size, 0)
    with pytest.raises(UserError, match="gives batch norm one value") as told:
        training_pass(backbone, 3, size, 1)
    assert f"layer {layer}" in str(told.value)
    assert way_out in str(told.value)
    assert ("norm=group" in str(told.value)) == (config.name == "small_cnn")
    assert training_pass(backbone, 3, size, 2).shape == (2, backbone.features)


@pytest.mark.parametrize("name", TRAINED)
def test_one_image_is_enough_where_no_channel_has_one_value(name: str) -> None:
    config, size = TRAINED[name]
    backbone = make_backbone(config, 1, size, 0)
    features = training_pass(backbone, 1, size, 1)
    features.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in backbone.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", REFUSED)
def test_the_way_out_that_is_named_is_one(name: str) -> None:
    config, size, _, way_out = REFUSED[name]
    key, _, value = way_out.removeprefix("backbone.").partition("=")
    if value:
        config = config.model_copy(update={key: int(value) if value.isdigit() else value})
    else:
        size *= 2
    training_pass(make_backbone(config, 3, size, 0), 3, size, 1)


def test_a_pass_leaves_no_hook_and_draws_no_number() -> None:
    backbone = make_backbone(BackboneConfig(), 3, 16, 0)
    torch.manual_seed(5)
    training_pass(backbone, 3, 16, 2)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))
    assert not any(module._forward_pre_hooks for module in backbone.modules())
