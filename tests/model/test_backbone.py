"""Backbones give features of the promised width, from any network, for the images at hand."""

import pytest
import torch
from torch import nn

from harness.config import BackboneConfig
from harness.errors import UserError
from harness.model.backbone import make_backbone

WIDTHS = {
    "resnet18": 512,
    "mobilenet_v3_small": 1024,
    "densenet121": 1024,
    "efficientnet_b0": 1280,
    "squeezenet1_1": 512,
    "vgg11_bn": 4096,
    "vit_b_16": 768,
    "convnext_tiny": 768,
    "googlenet": 1024,
}
"""Features before the head, as their papers and torchvision's own heads have them."""
BUILT = ("resnet18", "mobilenet_v3_small", "squeezenet1_1")
NORMS = {"batch": (nn.BatchNorm2d, nn.BatchNorm1d), "group": (nn.GroupNorm, nn.LayerNorm)}


def images(count: int, channels: int = 1, size: int = 32) -> torch.Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", WIDTHS)
def test_a_network_of_torchvision_loses_its_head_and_takes_one_channel(name: str) -> None:
    with torch.device("meta"):  # by shapes alone: some of these are half a gigabyte
        backbone = make_backbone(BackboneConfig(name=name, feature_dim=0), 1, 32, seed=0).eval()
        features = backbone(torch.zeros(2, 1, 32, 32))
    assert features.shape == (2, WIDTHS[name])
    assert backbone.features == WIDTHS[name]
    sizes = {size for parameter in backbone.parameters() for size in parameter.shape}
    assert 1000 not in sizes, "something that scores ImageNet's classes is left"


@pytest.mark.parametrize("name", BUILT)
def test_a_network_of_torchvision_learns(name: str) -> None:
    """A gradient reaches every parameter, the new first convolution among them."""
    backbone = make_backbone(BackboneConfig(name=name, feature_dim=12), 1, 32, seed=0)
    features = backbone(images(4))
    assert features.shape == (4, 12)
    features.square().sum().backward()
    without = [n for n, p in backbone.named_parameters() if p.grad is None]
    assert without == []
    first = next(module for module in backbone.modules() if isinstance(module, nn.Conv2d))
    assert first.in_channels == 1
    assert first.weight.grad.abs().sum() > 0


def test_three_channels_keep_the_first_convolution_as_it_was_made() -> None:
    colour, grey = (
        make_backbone(BackboneConfig(name="resnet18", feature_dim=0), channels, 32, seed=0)
        for channels in (3, 1)
    )
    assert colour.body.conv1.weight.shape == (64, 3, 7, 7)
    assert grey.body.conv1.weight.shape == (64, 1, 7, 7)
    assert grey.body.conv1.bias is None
    assert grey.body.conv1.stride == colour.body.conv1.stride == (2, 2)


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 33)])
def test_the_small_network_takes_any_norm_and_size(norm: str, channels: int, size: int) -> None:
    backbone = make_backbone(BackboneConfig(norm=norm, feature_dim=20), channels, size, seed=0)
    features = backbone(images(2, channels, size))
    assert features.shape == (2, 20)
    kinds = tuple(m for m in backbone.modules() if isinstance(m, sum(NORMS.values(), ())))
    assert len(kinds) == (0 if norm == "none" else 5)
    assert all(isinstance(module, NORMS[norm]) for module in kinds)


@pytest.mark.parametrize(("norm", "depends"), [("batch", True), ("group", False), ("none", False)])
def test_only_batch_norm_makes_an_image_depend_on_the_others(norm: str, depends: bool) -> None:
    """What lets the laws hold to 1e-12 with `group`, whatever rank an image is on."""
    backbone = make_backbone(BackboneConfig(norm=norm, feature_dim=8), 1, 16, seed=0).double()
    batch = images(4, size=16).double()
    together, alone = backbone(batch)[:2], backbone(batch[:2])
    assert torch.allclose(together, alone, rtol=0, atol=1e-12) != depends


def test_without_an_embedding_the_width_is_the_networks_own() -> None:
    backbone = make_backbone(BackboneConfig(feature_dim=0), 1, 32, seed=0)
    assert backbone.features == backbone(images(2)).shape[1] == 192 * 4 * 4


@pytest.mark.parametrize("name", ["small_cnn", "mobilenet_v3_small"])
def test_weights_are_a_function_of_the_seed_and_leave_other_generators_alone(name: str) -> None:
    config = BackboneConfig(name=name, feature_dim=16)
    torch.manual_seed(7)
    expected_next = torch.rand(1)
    torch.manual_seed(7)
    one = make_backbone(config, 1, 32, seed=3).state_dict()
    assert torch.equal(torch.rand(1), expected_next)
    again = make_backbone(config, 1, 32, seed=3).state_dict()
    other = make_backbone(config, 1, 32, seed=4).state_dict()
    assert all(torch.equal(one[key], again[key]) for key in one)
    weights = [key for key in one if one[key].dim() > 1]
    assert weights
    assert not any(torch.equal(one[key], other[key]) for key in weights)


def test_making_one_leaves_it_in_training_and_its_statistics_untouched() -> None:
    backbone = make_backbone(BackboneConfig(), 1, 16, seed=0)
    assert all(module.training for module in backbone.modules())
    counts = [v for k, v in backbone.state_dict().items() if k.endswith("num_batches_tracked")]
    assert counts
    assert not any(counts)


@pytest.mark.parametrize(
    ("name", "size", "reason"),
    [
        ("resnet81", 32, "unknown backbone.name=resnet81; use small_cnn or one of torchvision's"),
        ("quantized_resnet18", 32, "unknown backbone.name=quantized_resnet18; use small_cnn"),
        ("alexnet", 32, "backbone.name=alexnet cannot take 1 x 32 x 32 images (Given input size"),
        ("vit_b_16", 24, "cannot take 1 x 24 x 24 images (Input shape indivisible by patch size!)"),
        ("resnet81", 32, "the nearest is resnet"),
        ("maxvit_t", 256, "; set data.image_size=224 or data.image_size=448, or use another"),
        ("alexnet", 32, "; set data.image_size=64, or use another backbone"),
        ("vit_b_16", 24, "; set data.image_size=16 or data.image_size=32, or use another"),
    ],
)
def test_what_does_not_fit_is_the_users_to_mend(name: str, size: int, reason: str) -> None:
    with pytest.raises(UserError) as caught, torch.device("meta"):
        make_backbone(BackboneConfig(name=name), 1, size, seed=0)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_size_that_is_given_to_the_network_is_the_images() -> None:
    """Networks whose attention has windows are made for one size; 224 is only torchvision's."""
    with torch.device("meta"):
        backbone = make_backbone(BackboneConfig(name="maxvit_t", feature_dim=0), 3, 448, seed=0)
    assert backbone.features == 512


FAMILIES = (
    *("alexnet", "inception_v3", "maxvit_t", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_1"),
    *("swin_v2_t", "vgg11", "vit_b_32"),
)
"""Those that need a least size, a multiple of a patch or of a window, or none of it."""


@pytest.mark.parametrize("name", FAMILIES)
def test_any_size_is_taken_or_refused_in_a_line(name: str) -> None:
    for size in (8, 61):
        said = refused(name, size)
        assert not said or f"cannot take 3 x {size} x {size} images" in said
        assert "\n" not in said


def refused(name: str, size: int) -> str:
    """The line; empty where the network takes images of that size."""
    try:
        with torch.device("meta"):
            make_backbone(BackboneConfig(name=name, feature_dim=0), 3, size, seed=0)
    except UserError as error:
        return str(error)
    return ""


def test_a_norm_belongs_to_the_small_network() -> None:
    with pytest.raises(UserError, match="norm=group applies only to small_cnn"):
        make_backbone(BackboneConfig(name="resnet18", norm="group"), 1, 32, seed=0)


def test_memory_that_is_short_is_not_taken_for_a_size_that_does_not_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def short(*_: object) -> int:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 TB")

    monkeypatch.setattr("harness.model.backbone._features_of", short)
    with pytest.raises(UserError, match=r"more memory than is free; lower data\.image_size$"):
        make_backbone(BackboneConfig(), 3, 16384, seed=0)
