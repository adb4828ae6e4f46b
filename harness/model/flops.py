"""How many floating-point operations a micro-batch takes: its forward and its backward pass."""

import copy
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from harness.model.backbone import Backbone

COUNTED_IMAGES = 2
"""Batch norm takes no fewer."""
PRODUCTS = 3
"""Of the classifier: logits, the features' gradient, the weight's gradient."""


@dataclass(frozen=True)
class Flops:
    """Of one rank in one micro-batch; a multiplication and its addition count as two."""

    backbone: int
    classifier: int

    @property
    def total(self) -> int:
        return self.backbone + self.classifier


def micro_batch_flops(
    backbone: Backbone, channels: int, image_size: int, images: int, gathered: int, classes: int
) -> Flops:
    """Products of matrices and convolutions only, as torch's counter has it; no other pass.

    `images` (B) go through the backbone, `gathered` (n) features meet `classes` (K) of a slice.
    """
    per_image = _backbone_flops(backbone, channels, image_size) / COUNTED_IMAGES
    return Flops(
        backbone=round(per_image * images),
        classifier=PRODUCTS * 2 * gathered * classes * backbone.features,
    )


def _backbone_flops(backbone: Backbone, channels: int, image_size: int) -> int:
    twin = copy.deepcopy(backbone).train()
    parameter = next(twin.parameters())
    images = torch.zeros(
        COUNTED_IMAGES, channels, image_size, image_size, device=parameter.device
    ).to(parameter.dtype)
    devices = [parameter.device] if parameter.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), FlopCounterMode(display=False) as counter:
        twin(images).sum().backward()
    return int(counter.get_total_flops())
