"""What a config demands of a cluster: operations, bytes and memory, without running it."""

from collections.abc import Sequence
from dataclasses import dataclass

from harness.config import Config
from harness.doctor.need import Need, need_of, products_of
from harness.errors import UserError
from harness.exchange.buckets import cut
from harness.exchange.carriers import route_of
from harness.exchange.exchange import steps_alone, steps_own_gradients, why_rows_are_not_drawn
from harness.exchange.flat import order_of
from harness.measure.traffic import Bytes, Sizes, bucket_bytes, slice_bytes
from harness.model.anatomy import Anatomy, anatomy_of
from harness.model.flops import backward_of
from harness.parallel.topology import Topology, check_classes
from harness.train.ledger import expected_bytes, sizes_of


@dataclass(frozen=True)
class Bucket:
    """A part of the flat gradient that is averaged at once."""

    elements: int
    arrival: float
    """Time at which its last gradient is ready, as a fraction of the backbone's backward pass; 0
    means before that pass."""
    sent: Bytes
    """Bytes that a rank sends."""
    of_slice: bool = False
    """Whether it is averaged only over the ranks of other nodes that own the same slice."""


@dataclass(frozen=True)
class Rows:
    """Elements of the classes that a rank steps row by row, because they are sampled."""

    held: float = 0.0
    moving: float = 0.0
    """Those that take part in a micro-batch of a step, and so step themselves."""
    searched: float = 0.0
    """Those whose gradients are read in a step to find the rows that move."""

    @classmethod
    def of(cls, config: Config, anatomy: Anatomy) -> "Rows":
        exchange, layout = config.exchange, config.classifier.layout
        if anatomy.sampling == 1:
            return cls()
        held = float(anatomy.sliced_elements)
        if anatomy.is_replicated:
            ranks = anatomy.ranks_per_node if steps_alone(exchange) else 1
            held = anatomy.classifier_elements / ranks
        passes = 1 if exchange.traits.local_steps else exchange.backward_passes_per_step
        share = passes * anatomy.taking_part(config.train.batch_size) / anatomy.largest_slice
        searched = 0.0 if steps_own_gradients(exchange, layout) else held
        return cls(held, held * min(1.0, share), searched)


@dataclass(frozen=True)
class Workload:
    """The demands of one rank; if ranks differ, of the most loaded one."""

    config: Config
    nodes: int
    ranks_per_node: int
    backbone_flops: float
    """Operations of the backbone in a micro-batch, forward and backward."""
    forward_share: float | None
    """Share of them that is the forward pass; None: the usual one, since all of it is trained."""
    classifier_flops: float
    """Operations of the classifier in a micro-batch, forward and backward."""
    shared: int
    """Elements that every rank of a node holds."""
    sliced: int
    """Elements of this rank's slice of the classes; 0 if classes are replicated."""
    element_bytes: int
    window: Bytes
    """Bytes that a rank sends in a window, by the formula that counted bytes must equal."""
    gathers: tuple[Bytes, ...]
    """The part of them sent in each collective of the slice group, per micro-batch."""
    buckets: tuple[Bucket, ...]
    """Gradients averaged during the backward pass, in the order they are sent, slices first."""
    need: Need
    """Memory."""
    rows: Rows

    @property
    def passes(self) -> int:
        """K, micro-batches per window."""
        return self.config.exchange.backward_passes_per_step

    @property
    def images(self) -> int:
        """Images of all ranks in a window."""
        ranks = self.nodes * self.ranks_per_node
        return self.config.train.batch_size * self.passes * ranks

    @property
    def route(self) -> str:
        return route_of(self.config.exchange, self.nodes, self.ranks_per_node)

    @property
    def overlaps(self) -> bool:
        """Whether gradients are averaged in buckets during the backward pass."""
        return not steps_alone(self.config.exchange)

    @property
    def encoded(self) -> float:
        """Elements of all buckets that a rank packs and unpacks itself."""
        share = self.ranks_per_node if self.route == "hierarchical" else 1
        return sum(each.elements / (1 if each.of_slice else share) for each in self.buckets)

    @property
    def rounds(self) -> tuple[int, ...]:
        """How often each of `gathers` goes round the group's ring.

        The first gathers features and the last scatters their gradients, once round each. Between
        them are softmax statistics: one gather (once round), or several all-reduces (twice).
        """
        between = len(self.gathers) - 2
        return (1, *([1] if between == 1 else [2] * between), 1)

    @property
    def steps(self) -> int:
        """Optimizer steps per window."""
        return self.passes if self.config.exchange.traits.local_steps else 1

    @property
    def part(self) -> float:
        """Elements that a rank exchanges with its peers on other nodes in a window."""
        exchange, classifier = self.config.exchange, self.config.classifier
        chunk = self.shared / self.ranks_per_node / exchange.pieces
        if exchange.slice_rows == "drawn":
            return chunk + self.sliced * min(1.0, classifier.sampling * self.passes)
        crossing = self.sliced if classifier.layout == "node" else 0
        return chunk + crossing / (exchange.slice_pieces or exchange.pieces)

    @property
    def messages(self) -> int:
        """Messages that a rank sends to each of its peers in a window, after the backward pass."""
        return 2 if self.config.exchange.slices_apart else 1

    @property
    def owned(self) -> float:
        """Elements that a rank's optimizer updates, without those that step row by row."""
        shared = self.shared if self.overlaps else self.shared / self.ranks_per_node
        return shared + self.sliced - self.rows.held

    @property
    def gathered(self) -> Bytes:
        """Bytes that a rank sends in the slice group in a window."""
        return sum(self.gathers, Bytes()) * self.passes

    @property
    def exchanged(self) -> float:
        """Bytes that a rank sends to other nodes in a window, without the slice group's."""
        features = sum(gather.cross_node for gather in self.gathers) * self.passes
        return max(0.0, self.window.cross_node - features)


def workload_of(config: Config, nodes: int, ranks_per_node: int, cards: bool = False) -> Workload:
    """Computes a config's workload.

    Raises UserError for an impossible backbone, fewer classes than ranks that own them, or an
    exchange that so many nodes cannot have.
    """
    topology = Topology(0, nodes, ranks_per_node)
    check_classes(topology, config.classifier.layout, config.data.num_classes)
    if reason := why_rows_are_not_drawn(config.exchange, nodes):
        raise UserError(reason)
    anatomy = anatomy_of(config, nodes, ranks_per_node)
    backbone = backward_of(config.backbone, anatomy.channels, config.data.image_size)
    sizes = sizes_of(config, anatomy)
    gathered = anatomy.owners * config.train.batch_size
    products = products_of(config, nodes, ranks_per_node, cards)
    # Of a micro-batch's positives each rank of the slice group has its share.
    classes = anatomy.taking_part(positives=config.train.batch_size)
    return Workload(
        config=config,
        nodes=nodes,
        ranks_per_node=ranks_per_node,
        backbone_flops=backbone.flops_per_image * config.train.batch_size,
        forward_share=backbone.forward_share if anatomy.frozen else None,
        classifier_flops=products * 2.0 * gathered * classes * anatomy.features,
        shared=anatomy.shared_elements,
        sliced=anatomy.sliced_elements,
        element_bytes=anatomy.element_bytes,
        window=expected_bytes(config, anatomy),
        gathers=slice_bytes(anatomy.layout, sizes),
        buckets=(
            *_slice_buckets(config, anatomy, sizes),
            *_buckets(config, anatomy, backbone.arrivals, sizes),
        ),
        need=need_of(config, nodes, ranks_per_node, cards),
        rows=Rows.of(config, anatomy),
    )


def _buckets(
    config: Config, anatomy: Anatomy, of_backbone: Sequence[float], sizes: Sizes
) -> tuple[Bucket, ...]:
    """The buckets of shared parameters, in the order of `Flat`."""
    shapes = anatomy.shared
    # The classifier's gradients are ready before the backbone's backward pass begins.
    arrivals = [*of_backbone, *[0.0] * (len(shapes) - len(of_backbone))]
    order = order_of(shapes)
    elements = [shapes[number].numel() for number in order]
    route = route_of(config.exchange, sizes.nodes, sizes.ranks_per_node)
    found = []
    for members in cut(elements, config.exchange.bucket_bytes / sizes.element_bytes):
        own = sum(elements[member] for member in members)
        arrival = max(arrivals[order[member]] for member in members)
        found.append(Bucket(own, arrival, bucket_bytes(route, own, sizes)))
    return tuple(found)


def _slice_buckets(config: Config, anatomy: Anatomy, sizes: Sizes) -> tuple[Bucket, ...]:
    """The buckets of slices, for the rank that owns the most classes."""
    if not anatomy.replicated_slices or anatomy.nodes == 1:
        return ()
    elements = [shape.numel() for shape in anatomy.classifier(anatomy.largest_slice)]
    found = []
    for members in cut(elements, config.exchange.bucket_bytes / sizes.element_bytes):
        own = sum(elements[member] for member in members)
        found.append(Bucket(own, 0.0, sizes.crossing(own, sizes.nodes, sizes.nodes), of_slice=True))
    return tuple(found)
