"""How much memory a rank of a run takes, computed from its config alone."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from harness.checks.finding import Facts
from harness.config import BackboneConfig, Config
from harness.exchange.exchange import route_of
from harness.measure.traffic import gathers_statistics
from harness.model.backbone import Backbone, make_backbone
from harness.parallel.slices import padded, slice_of

CHANNELS = {"glyphs": 1, "fashion_mnist": 1, "image_folder": 3, "synthetic": 3}
LOGITS_KEPT = 3
"""Logits, their exponentials, and one more while the loss or its gradient is computed."""

HALF = 2
"""Bytes of a number in half precision."""
COUNTED_IMAGES = 2
"""Batch norm takes no fewer."""


class Need(Facts):
    """Bytes that one rank takes beside its libraries."""

    model: int
    """Values, gradients and the optimizer's state."""
    exchange: int
    """Buffers of what is under way between nodes."""
    activations: int
    """What the backward pass needs of the forward pass, estimated from above for bf16."""
    checkpoint: int
    """On disk: the whole model and the optimizer's state, once."""

    @property
    def certain(self) -> int:
        """Taken whatever the images and the allocator are."""
        return self.model + self.exchange

    @property
    def total(self) -> int:
        return self.certain + self.activations


def need_of(config: Config, nodes: int, ranks_per_node: int) -> Need:
    """The most loaded rank's need, on M `nodes` of G ranks.

    s bytes an element (4; fp64: 8), P backbone parameters, C classes of D features and a bias,
    S = ceil(C / owners) (D + 1) in a slice; owners is G for layout node, MG for world, and
    replicated has S = 0 and counts C (D + 1) to P:

        model        (P + S) s 2 for values and gradients, and for the optimizer's state (1
                     momentum, 2 AdamW, 0 plain SGD) as often (P + S) s on the flat route, and
                     (P / G + S) s on the hierarchical one, where a rank steps what it owns
        exchange     (P / G + S) s, times 3 (delay + 1): what is given, what is sent and what
                     comes back; averaging 2 (delay + 1) + 3: also what moved, up to where, and the
                     outer momentum; and P s for one reduce-scatter in the node. Compression takes
                     less. On the flat synchronous route none; in half precision twice 2 bytes, and
                     2 s for what is clamped and what was not sent, of each averaged element
        activations  what autograd keeps of B images, twice the largest of it on the way back,
                     and 3 n S / (D + 1) s logits of the n = owners B images of the slice group;
                     softmax statistics, 3 n s, of each of its ranks where it gathers them
    """
    data = config.data
    channels = CHANNELS[data.dataset]
    network = _network(config.backbone, channels, data.image_size)
    element = 8 if config.train.precision == "fp64" else 4
    layout = config.classifier.layout
    owners = {"replicated": 1, "node": ranks_per_node, "world": nodes * ranks_per_node}[layout]
    own_classes = max(slice_of(data.num_classes, owners, k).size for k in range(owners))
    bias = config.classifier.margin == "none"
    shared = network.parameters
    sliced = own_classes * (network.features + bias)
    whole = shared + data.num_classes * (network.features + bias)
    if layout == "replicated":
        shared, sliced = shared + sliced, 0
    images = owners * config.train.batch_size
    logits = LOGITS_KEPT * images * own_classes * element
    statistics = 3 * images * element * (owners if gathers_statistics(owners) else 1)
    hierarchical = route_of(config.exchange, config.classifier) == "hierarchical"
    stepped = padded(shared, ranks_per_node) // ranks_per_node if hierarchical else shared
    return Need(
        model=(2 * (shared + sliced) + _states(config) * (stepped + sliced)) * element,
        exchange=_exchange_bytes(config, shared, sliced, nodes, ranks_per_node, element),
        activations=network.kept_bytes * config.train.batch_size // COUNTED_IMAGES * element // 4
        + logits
        + statistics,
        checkpoint=whole * element * (1 + _states(config)),
    )


def _states(config: Config) -> int:
    if config.optimizer.name == "adamw":
        return 2
    return 1 if config.optimizer.momentum else 0


def _exchange_bytes(
    config: Config, shared: int, sliced: int, nodes: int, ranks_per_node: int, element: int
) -> int:
    exchange = config.exchange
    if nodes * ranks_per_node == 1:
        return 0
    if exchange.kind == "synchronous" and route_of(exchange, config.classifier) == "flat":
        averaged = shared
        if config.classifier.layout == "node" and nodes > 1:
            averaged += sliced
        return 0 if exchange.compression == "none" else averaged * (2 * HALF + 2 * element)
    part = padded(shared, ranks_per_node) // ranks_per_node + sliced
    slots = exchange.delay + 1
    parts = {"averaging": 2 * slots + 3, "isolated": 0}.get(exchange.kind, 3 * slots)
    in_node = shared if ranks_per_node > 1 else 0
    return (parts * part + in_node) * element


@dataclass(frozen=True)
class _Network:
    """What a backbone asks for, whatever is done with it."""

    parameters: int
    features: int
    kept_bytes: int
    """In float32, of COUNTED_IMAGES: what autograd keeps, and the way back beside it."""


@cache
def _network(config: BackboneConfig, channels: int, size: int) -> _Network:
    backbone = make_backbone(config, channels, size, seed=0)
    return _Network(
        parameters=sum(parameter.numel() for parameter in backbone.parameters()),
        features=backbone.features,
        kept_bytes=_kept_bytes(backbone, channels, size),
    )


def _kept_bytes(backbone: Backbone, channels: int, size: int) -> int:
    """Bytes of what autograd keeps of a few images, and the way back beside it.

    All of it grows with their number. torch's meta device would need no memory for this, but
    seconds to be imported.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in backbone.state_dict().values()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage  # held, or its address could be given to another
        return tensor

    with (
        torch.random.fork_rng(devices=[]),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        backbone.train()(torch.zeros(COUNTED_IMAGES, channels, size, size))
    found = [storage.nbytes() for storage in kept.values()]
    return sum(found) + 2 * max(found, default=0)
