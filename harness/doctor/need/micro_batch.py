"""Peak memory of a forward and backward pass, and of the training around it."""

from harness.doctor.activations import Activations
from harness.doctor.need.classifier import ClassifierScratch
from harness.doctor.need.exchange import ExchangeMemory
from harness.doctor.need.sizes import Sizes
from harness.train.row_optimizer import TILE_BYTES

ROW_COPIES = 6
"""Copies of the rows that an optimizer steps at once: gradient, values, states, and temporaries."""
WEIGHT_COPIES = 5
"""Copies of the largest filter while its gradient is computed: the gradient, and the other memory
layouts that a CPU library uses in float32."""


def micro_batch_bytes(
    sizes: Sizes, backbone: Activations, batch: int, adds: bool, arriving: int = 0
) -> int:
    """Peak of a micro-batch of `batch` images per rank: in the backbone or in the classifier.

    `adds`: some micro-batches add to gradients that others left. `arriving`: bytes received during
    the backward pass of the backbone, when gradients are already being averaged.
    """
    s, images = sizes.element_bytes, sizes.owners * batch
    scale = s // 4
    found = backbone.of(batch)
    scratch = ClassifierScratch(sizes, images, 2 if backbone.half else s)
    most = max(scratch.training(each) for each in {False, adds})
    classifier = most + scratch.statistics + 3 * images * sizes.features * s
    copies = 4 * backbone.largest * (1 if backbone.half or scale > 1 else WEIGHT_COPIES)
    return max(
        found.frozen * scale,
        found.way_back * scale + copies + arriving,
        found.kept * scale + classifier,
    )


def _stepping_bytes(sizes: Sizes) -> int:
    """Peak of a step that takes a tile of rows at a time."""
    return sizes.sampled * ROW_COPIES * TILE_BYTES["cuda" if sizes.cards else "cpu"]


def training_bytes(sizes: Sizes) -> int:
    """Peak of a window: of a micro-batch, of the node's meeting, of a staleness sample, or of a
    step."""
    exchange, batch = ExchangeMemory(sizes), sizes.config.train.batch_size
    micro_batch = micro_batch_bytes(
        sizes, sizes.backbone, batch, sizes.adds_gradients, exchange.arriving
    )
    return max(micro_batch, exchange.meeting, exchange.sampling, _stepping_bytes(sizes))
