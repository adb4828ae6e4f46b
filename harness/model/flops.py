"""How many floating-point operations a micro-batch takes: its forward and its backward pass."""

import copy
from dataclasses import dataclass

from torch.utils.flop_counter import FlopCounterMode

from harness.model.backbone import Backbone
from harness.model.trainable import training_pass

COUNTED_IMAGES = 2
"""Batch norm may take no fewer."""
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
    Raises UserError where the backbone cannot be trained with B images.
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
        training_pass(twin, channels, image_size, images).sum().backward()
    return int(counter.get_total_flops())
