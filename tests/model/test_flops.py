"""Operations of a micro-batch: against torch's counter on the real network, and by hand."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from harness.config import BackboneConfig, ClassifierConfig
from harness.model.backbone import Backbone, make_backbone
from harness.model.flops import micro_batch_flops
from harness.model.network import Network
from harness.model.sliced_classifier import SlicedClassifier
from tests.alone import group_of_one

IMAGES, SIZE, CLASSES = 6, 16, 37


def backbone(name: str = "small_cnn") -> Backbone:
    return make_backbone(BackboneConfig(name=name, feature_dim=24), 1, SIZE, seed=0)


def test_equals_torchs_counter_on_the_whole_network() -> None:
    network = Network(
        backbone(), SlicedClassifier(24, CLASSES, ClassifierConfig(), group_of_one(), seed=0)
    )
    labels = torch.arange(IMAGES)
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(IMAGES, 1, SIZE, SIZE), labels).loss.backward()
    found = micro_batch_flops(network.backbone, 1, SIZE, IMAGES, IMAGES, CLASSES)
    assert found.total == counter.get_total_flops()
    assert found.classifier == 3 * 2 * IMAGES * CLASSES * 24


def test_the_first_convolution_by_hand() -> None:
    """It has no gradient of its input; those behind it have both."""
    widths, sizes = (1, 32, 64, 128, 192), (16, 8, 4, 2)
    convolutions = [
        2 * 9 * before * after * size**2 * (2 if number == 0 else 3)
        for number, (before, after, size) in enumerate(zip(widths, widths[1:], sizes, strict=False))
    ]
    embedding = 3 * 2 * (192 * 2 * 2) * 24
    found = micro_batch_flops(backbone(), 1, SIZE, IMAGES, IMAGES, CLASSES)
    assert found.backbone == IMAGES * (sum(convolutions) + embedding)


def test_slices_divide_the_classifier_and_gather_its_images() -> None:
    one = micro_batch_flops(backbone(), 1, SIZE, IMAGES, IMAGES, CLASSES)
    four = micro_batch_flops(backbone(), 1, SIZE, IMAGES, 4 * IMAGES, CLASSES)
    assert four.classifier == 4 * one.classifier
    assert four.backbone == one.backbone


def test_leaves_the_backbone_as_it_was() -> None:
    given = backbone()
    before = {name: value.clone() for name, value in given.state_dict().items()}
    state = torch.get_rng_state()
    micro_batch_flops(given, 1, SIZE, IMAGES, IMAGES, CLASSES)
    for name, value in given.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in given.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_torchvisions_resnet18_as_published() -> None:
    """1.82 G multiplications and additions forward, at 224 pixels and 1,000 classes."""
    given = make_backbone(BackboneConfig(name="resnet18", feature_dim=0), 3, 224, seed=0)
    found = micro_batch_flops(given, 3, 224, 1, 1, 1000)
    first = 2 * 3 * 64 * 49 * 112**2  # no gradient of the images
    assert found.total + first == pytest.approx(3 * 2 * 1.814e9, rel=0.005)
