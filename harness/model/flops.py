"""Floating-point operations of a micro-batch: its forward and its backward pass."""

import copy
from dataclasses import dataclass
from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from harness.config import BackboneConfig
from harness.model.backbone import Backbone, make_backbone
from harness.model.trainable import training_pass

COUNTED_IMAGES = 2
"""The fewest images that batch norm takes."""
PRODUCTS = 3
"""Matrix products of the classifier: logits, gradient of the features, gradient of the weight."""


@dataclass(frozen=True)
class Flops:
    """Operations of one rank in one micro-batch; a multiplication and its addition count as two."""

    backbone: int
    classifier: int

    @property
    def total(self) -> int:
        return self.backbone + self.classifier


def micro_batch_flops(
    backbone: Backbone, channels: int, image_size: int, images: int, gathered: int, classes: int
) -> Flops:
    """Operations of matrix products and convolutions, as torch's counter counts them.

    `images` (B) go through the backbone; `gathered` (n) features are multiplied with the slice's
    `classes` that take part (R). Raises UserError if the backbone cannot be trained with B images.
    """
    counted = min(COUNTED_IMAGES, images)
    per_image = _backbone_flops(backbone, channels, image_size, counted) / counted
    return Flops(
        backbone=round(per_image * images),
        classifier=PRODUCTS * 2 * gathered * classes * backbone.features,
    )


def _backbone_flops(backbone: Backbone, channels: int, image_size: int, images: int) -> int:
    twin = copy.deepcopy(backbone)
    with FlopCounterMode(display=False) as counter:
        features = training_pass(twin, channels, image_size, images)
        if features.requires_grad:
            features.sum().backward()
    return int(counter.get_total_flops())


@dataclass(frozen=True)
class Backward:
    """The order in which a backbone's gradients become ready."""

    flops_per_image: float
    """Operations of forward and backward pass."""
    arrivals: tuple[float, ...]
    """For each trained parameter, the share of the backward pass's operations done when its
    gradient is ready."""
    forward_share: float
    """Share of the operations that are the forward pass."""


@cache
def backward_of(config: BackboneConfig, channels: int, image_size: int) -> Backward:
    """Measured in one forward and backward pass of a few images."""
    backbone = make_backbone(config, channels, image_size, seed=0).train()
    parameters = backbone.trained
    arrived: dict[int, int] = {}
    with torch.random.fork_rng(devices=[]), FlopCounterMode(display=False) as counter:
        output = backbone(torch.zeros(COUNTED_IMAGES, channels, image_size, image_size)).sum()
        forward = counter.get_total_flops()

        def note(number: int) -> None:
            arrived[number] = counter.get_total_flops() - forward

        for number, parameter in enumerate(parameters):
            parameter.register_post_accumulate_grad_hook(lambda _, number=number: note(number))
        if parameters:
            output.backward()
        backward = max(1, counter.get_total_flops() - forward)
    return Backward(
        flops_per_image=(forward + backward) / COUNTED_IMAGES,
        arrivals=tuple(arrived.get(n, backward) / backward for n in range(len(parameters))),
        forward_share=forward / (forward + backward),
    )
