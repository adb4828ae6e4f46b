"""What a config asks of a cluster: operations, bytes and memory, computed without running it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from harness.config import BackboneConfig, Config
from harness.doctor.need import CHANNELS, Need, need_of, products_of
from harness.exchange.buckets import cut
from harness.exchange.exchange import route_of, steps_alone
from harness.exchange.flat import order_of
from harness.measure.traffic import Bytes, Sizes, bucket_bytes, slice_bytes
from harness.model.backbone import make_backbone
from harness.model.flops import COUNTED_IMAGES
from harness.parallel.slices import slice_of
from harness.parallel.topology import Topology, check_classes
from harness.train.ledger import expected_bytes, sizes_of


@dataclass(frozen=True)
class Bucket:
    """A piece of the flat gradient that is averaged as one."""

    elements: int
    arrival: float
    """When its last gradient has come, as a share of the backbone's backward pass; 0: before it."""
    sent: Bytes
    """By a rank."""
    of_slice: bool = False
    """Averaged over the ranks of other nodes that own the same slice, not over all."""


@dataclass(frozen=True)
class Workload:
    """Of one rank, where the ranks differ of the most loaded one."""

    config: Config
    nodes: int
    ranks_per_node: int
    backbone_flops: float
    """Of a micro-batch, forward and backward."""
    classifier_flops: float
    shared: int
    """Elements that every rank of a node holds."""
    sliced: int
    """Elements of this rank's slice of the classes, 0 where they are replicated."""
    element_bytes: int
    window: Bytes
    """That a rank sends in a window, by the formula that counted bytes must equal."""
    gathers: tuple[Bytes, ...]
    """Of them, in the slice group, of each collective of a micro-batch."""
    buckets: tuple[Bucket, ...]
    """Of gradients that are averaged beside the backward pass, in the order they go out: slices'
    come first."""
    need: Need

    @property
    def passes(self) -> int:
        return self.config.exchange.backward_passes_per_step

    @property
    def images(self) -> int:
        """All ranks', of a window."""
        ranks = self.nodes * self.ranks_per_node
        return self.config.train.batch_size * self.passes * ranks

    @property
    def route(self) -> str:
        return route_of(self.config.exchange, self.nodes, self.ranks_per_node)

    @property
    def overlaps(self) -> bool:
        """Gradients are averaged in buckets, beside the backward pass."""
        return not steps_alone(self.config.exchange)

    @property
    def encoded(self) -> float:
        """Elements of all buckets that a rank writes and reads itself."""
        share = self.ranks_per_node if self.route == "hierarchical" else 1
        return sum(each.elements / (1 if each.of_slice else share) for each in self.buckets)

    @property
    def rounds(self) -> tuple[int, ...]:
        """How often each of `gathers` goes round the group's ring: an all-reduce twice.

        Features are gathered first and scattered last; what is between them are statistics, which
        more than one collective adds up.
        """
        between = len(self.gathers) - 2
        return (1, *([1] if between == 1 else [2] * between), 1)

    @property
    def steps(self) -> int:
        """Of the optimizer in a window."""
        return self.passes if self.config.exchange.traits.local_steps else 1

    @property
    def part(self) -> float:
        """Elements that a rank speaks for towards its peers in a window."""
        crossing = self.sliced if self.config.classifier.layout == "node" else 0
        return (self.shared / self.ranks_per_node + crossing) / self.config.exchange.pieces

    @property
    def owned(self) -> float:
        """Elements that a rank steps."""
        if self.overlaps:
            return float(self.shared + self.sliced)
        return self.shared / self.ranks_per_node + self.sliced

    @property
    def gathered(self) -> Bytes:
        """In the slice group, in a window."""
        return sum(self.gathers, Bytes()) * self.passes

    @property
    def exchanged(self) -> float:
        """Bytes that a rank sends to other nodes in a window, features left out."""
        features = sum(gather.cross_node for gather in self.gathers) * self.passes
        return max(0.0, self.window.cross_node - features)


def workload_of(config: Config, nodes: int, ranks_per_node: int, cards: bool = False) -> Workload:
    """Raises UserError for a backbone that cannot be, or fewer classes than ranks to own them."""
    layout = config.classifier.layout
    topology = Topology(0, nodes, ranks_per_node)
    check_classes(topology, layout, config.data.num_classes)
    network = _network(config.backbone, CHANNELS[config.data.dataset], config.data.image_size)
    element = 8 if config.train.precision == "fp64" else 4
    per_class = network.features + (config.classifier.margin == "none")
    owners = {"replicated": 1, "node": ranks_per_node, "world": topology.world_size}[layout]
    owned = [slice_of(config.data.num_classes, owners, n).size for n in range(owners)]
    shapes = list(network.shapes)
    if layout == "replicated":
        shapes += _classifier_shapes(config, network.features)
    slices = tuple(size * per_class for size in owned) if layout == "node" else ()
    given = (config, topology, shapes, slices, network.features, element)
    sizes = sizes_of(*given)
    gathered = owners * config.train.batch_size
    products = products_of(config, nodes, ranks_per_node, cards)
    return Workload(
        config=config,
        nodes=nodes,
        ranks_per_node=ranks_per_node,
        backbone_flops=network.flops_per_image * config.train.batch_size,
        classifier_flops=products * 2.0 * gathered * max(owned) * network.features,
        shared=sum(shape.numel() for shape in shapes),
        sliced=0 if layout == "replicated" else max(owned) * per_class,
        element_bytes=element,
        window=expected_bytes(*given),
        gathers=slice_bytes(layout, sizes),
        buckets=(
            *_slice_buckets(config, sizes, max(owned)),
            *_buckets(config, network, shapes, sizes),
        ),
        need=need_of(config, nodes, ranks_per_node, cards),
    )


@dataclass(frozen=True)
class _Network:
    """A backbone, whatever is done with it."""

    shapes: tuple[torch.Size, ...]
    arrivals: tuple[float, ...]
    """Of each parameter's gradient, as a share of the backward pass's operations."""
    features: int
    flops_per_image: float


@cache
def _network(config: BackboneConfig, channels: int, size: int) -> _Network:
    """One forward and backward pass of a few images, to see when which gradient comes."""
    backbone = make_backbone(config, channels, size, seed=0).train()
    parameters = list(backbone.parameters())
    arrived: dict[int, int] = {}
    with torch.random.fork_rng(devices=[]), FlopCounterMode(display=False) as counter:
        output = backbone(torch.zeros(COUNTED_IMAGES, channels, size, size)).sum()
        forward = counter.get_total_flops()

        def note(number: int) -> None:
            arrived[number] = counter.get_total_flops() - forward

        for number, parameter in enumerate(parameters):
            parameter.register_post_accumulate_grad_hook(lambda _, number=number: note(number))
        output.backward()
        backward = max(1, counter.get_total_flops() - forward)
    return _Network(
        shapes=tuple(parameter.shape for parameter in parameters),
        arrivals=tuple(arrived.get(n, backward) / backward for n in range(len(parameters))),
        features=backbone.features,
        flops_per_image=(forward + backward) / COUNTED_IMAGES,
    )


def _classifier_shapes(config: Config, features: int) -> list[torch.Size]:
    classes = config.data.num_classes
    bias = [torch.Size([classes])] if config.classifier.margin == "none" else []
    return [torch.Size([classes, features]), *bias]


def _buckets(
    config: Config, network: _Network, shapes: Sequence[torch.Size], sizes: Sizes
) -> tuple[Bucket, ...]:
    """Of what all share, in the order of `Flat`."""
    arrivals = list(network.arrivals) + [0.0] * (len(shapes) - len(network.arrivals))
    order = order_of(shapes)
    elements = [shapes[number].numel() for number in order]
    route = route_of(config.exchange, sizes.nodes, sizes.ranks_per_node)
    found = []
    for members in cut(elements, config.exchange.bucket_bytes / sizes.element_bytes):
        own = sum(elements[member] for member in members)
        arrival = max(arrivals[order[member]] for member in members)
        found.append(Bucket(own, arrival, bucket_bytes(route, own, sizes)))
    return tuple(found)


def _slice_buckets(config: Config, sizes: Sizes, classes: int) -> tuple[Bucket, ...]:
    """Of the rank that owns so many classes."""
    if not sizes.slices or sizes.nodes == 1:
        return ()
    elements = [classes * sizes.features]
    if config.classifier.margin == "none":
        elements.append(classes)
    found = []
    for members in cut(elements, config.exchange.bucket_bytes / sizes.element_bytes):
        own = sum(elements[member] for member in members)
        found.append(Bucket(own, 0.0, sizes.crossing(own, sizes.nodes, sizes.nodes), of_slice=True))
    return tuple(found)
