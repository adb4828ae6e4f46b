"""Bytes sent: counted at each collective, and computed by formula from the sizes of a run."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

from harness.exchange.kinds import KINDS, Crosses, KindName, Path
from harness.parallel.slices import padded, slice_of

GATHERED_RANKS = 8
"""Largest slice group that gathers softmax statistics in one collective. Larger ones add them up in
two, so that what a rank sends does not grow with the square of the group."""


@dataclass(frozen=True)
class Bytes:
    """Bytes sent by one rank; summed over a node's ranks, `cross_node` is the load of its link."""

    in_node: float = 0.0
    cross_node: float = 0.0

    def __add__(self, other: "Bytes") -> "Bytes":
        return Bytes(self.in_node + other.in_node, self.cross_node + other.cross_node)

    def __sub__(self, other: "Bytes") -> "Bytes":
        return Bytes(self.in_node - other.in_node, self.cross_node - other.cross_node)

    def __mul__(self, factor: float) -> "Bytes":
        return Bytes(self.in_node * factor, self.cross_node * factor)


def all_gather_bytes(block: float, ranks: int, nodes: int) -> Bytes:
    """Each of `ranks` receives `block` bytes of every other; ranks are spread evenly on `nodes`.

    A node receives the blocks of all ranks outside it once; the rest moves inside. The same holds,
    reversed, for a reduce-scatter of blocks of this size.
    """
    per_node = ranks // nodes
    link = (ranks - per_node) * block
    return Bytes(in_node=(ranks - 1) * block - link / per_node, cross_node=link / per_node)


def all_to_all_bytes(block: float, ranks: int, nodes: int) -> Bytes:
    """Each of `ranks` sends `block` bytes to every other; ranks are spread evenly on `nodes`."""
    per_node = ranks // nodes
    return Bytes(in_node=(per_node - 1) * block, cross_node=(ranks - per_node) * block)


def all_reduce_bytes(total: float, ranks: int, nodes: int) -> Bytes:
    """A flat ring that sums `total` bytes over `ranks`, spread evenly and in order on `nodes`.

    Each rank sends 2(n-1)/n of the buffer to the next one; per node one of those neighbours is
    across the link.
    """
    sent = 2 * (ranks - 1) / ranks * total
    if nodes == 1:
        return Bytes(in_node=sent)
    per_node = ranks // nodes
    return Bytes(in_node=sent * (per_node - 1) / per_node, cross_node=sent / per_node)


class Traffic:
    """Total bytes that this rank has sent, added up at every collective, on any thread."""

    def __init__(self) -> None:
        self.total = Bytes()
        self._adding = threading.Lock()

    def add(self, sent: Bytes) -> None:
        with self._adding:
            self.total = self.total + sent


@dataclass(frozen=True)
class Sizes:
    """The sizes that the formula needs."""

    nodes: int
    ranks_per_node: int
    images_per_rank: int
    """B, images per rank in a micro-batch."""
    passes: int
    """K, micro-batches in a window."""
    shared: int
    """Elements that every rank of a node holds: the backbone, and a replicated classifier."""
    slices: tuple[int, ...]
    """Elements of each slice of a node's ranks, if the slices have replicas on other nodes."""
    features: int
    element_bytes: int
    feature_bytes: int
    """Bytes of a feature as sent between ranks; 2 under bf16."""
    crossing: Callable[[int, int, int], Bytes]
    """(elements, ranks, nodes) -> bytes that a rank sends to average them."""
    pieces: int = 1
    """Pieces of a part; one of them crosses per window."""
    slice_pieces: int | None = None
    """Pieces of a slice, if they cross in messages of their own; None: beside those of a chunk."""
    buckets: tuple[int, ...] = ()
    """Elements of each bucket of the shared parameters, if gradients are averaged beside the
    backward pass; together they make up `shared`."""
    slice_buckets: tuple[tuple[int, ...], ...] = ()
    """The same for the slices of a node's ranks."""
    label_bytes: int = 4
    statistic_bytes: int = 4
    statistics: int = 3
    """Numbers per image that slices exchange; one more if labels are smoothed."""


def formula(layout: str, kind: KindName, route: str, sizes: Sizes) -> Bytes:
    """Bytes that a rank sends in a window, mean over a node's ranks, from the sizes alone.

    replicated, node: 2(M-1)/M of what a rank owns crosses to its peers; a flat ring sends 2(N-1)/N
    of everything over each link instead. world: features of all other nodes, twice.
    """
    nodes, per_node = sizes.nodes, sizes.ranks_per_node
    ranks, traits = nodes * per_node, KINDS[kind]
    window = Bytes()
    for gathered in slice_bytes(layout, sizes):
        window += gathered * sizes.passes
    if traits.crosses is Crosses.VALUES:
        exact = sizes.shared * sizes.element_bytes
        in_node = all_reduce_bytes(exact, per_node, 1) * sizes.passes
        return window + in_node + all_reduce_bytes(exact, ranks, nodes)
    if traits.path is Path.BUCKETS:
        own = Bytes()
        for buckets in sizes.slice_buckets:
            for bucket in buckets:
                own += sizes.crossing(bucket, nodes, nodes)
        for bucket in sizes.buckets:
            window += bucket_bytes(route, bucket, sizes)
        return window + own * (1 / per_node)
    if traits.path is Path.DDP:
        return window + sizes.crossing(sizes.shared, ranks, nodes)
    chunk = padded(sizes.shared, per_node) // per_node
    steps = sizes.passes if traits.local_steps else 1
    # A reduce-scatter of gradients to the chunks' owners, and a gather of the stepped values.
    window += all_gather_bytes(chunk * sizes.element_bytes, per_node, 1) * 2 * steps
    if traits.meets:
        window += _part_bytes(sizes, chunk)
    return window


def bucket_bytes(route: str, elements: int, sizes: Sizes) -> Bytes:
    """Bytes that a rank sends to average one bucket of shared parameters."""
    nodes, per_node = sizes.nodes, sizes.ranks_per_node
    if route == "flat":
        return sizes.crossing(elements, nodes * per_node, nodes)
    share = padded(elements, per_node) // per_node
    # In the node a reduce-scatter and a gather of shares; between nodes the average of one share.
    in_node = all_gather_bytes(share * sizes.element_bytes, per_node, 1) * 2
    return in_node + sizes.crossing(share, nodes, nodes)


def gathers_statistics(ranks: int) -> bool:
    """Whether a slice group of `ranks` ranks gathers its softmax statistics instead of adding them
    up."""
    return ranks <= GATHERED_RANKS


def slice_bytes(layout: str, sizes: Sizes) -> tuple[Bytes, ...]:
    """Bytes that a rank sends in its slice group per micro-batch, one entry per collective:
    features and labels gathered; softmax statistics gathered, or their maximum and then their sums
    all-reduced; the features' gradient reduce-scattered."""
    nodes, per_node = sizes.nodes, sizes.ranks_per_node
    group_ranks, group_nodes = {
        "replicated": (1, 1),
        "node": (per_node, 1),
        "world": (nodes * per_node, nodes),
    }[layout]
    feature_block = sizes.images_per_rank * sizes.features * sizes.feature_bytes
    label_block = sizes.images_per_rank * sizes.label_bytes
    row = group_ranks * sizes.images_per_rank * sizes.statistic_bytes
    if gathers_statistics(group_ranks):
        statistics = [all_gather_bytes(sizes.statistics * row, group_ranks, group_nodes)]
    else:
        hops = 1, sizes.statistics - 1
        statistics = [all_reduce_bytes(rows * row, group_ranks, group_nodes) for rows in hops]
    return (
        all_gather_bytes(feature_block + label_block, group_ranks, group_nodes),
        *statistics,
        all_gather_bytes(feature_block, group_ranks, group_nodes),
    )


def _part_bytes(sizes: Sizes, chunk: int) -> Bytes:
    """Bytes that a window sends of a chunk and a slice, mean over a node's ranks and over
    pieces."""
    total = Bytes()
    for elements in sizes.slices or (0,) * sizes.ranks_per_node:
        if sizes.slice_pieces is None:
            total += _piece_bytes(sizes, sizes.pieces, chunk, elements)
        else:
            total += _piece_bytes(sizes, sizes.pieces, chunk)
            total += _piece_bytes(sizes, sizes.slice_pieces, elements)
    return total * (1 / sizes.ranks_per_node)


def _piece_bytes(sizes: Sizes, pieces: int, *tensors: int) -> Bytes:
    """Bytes of a message with a piece of each tensor, mean over pieces."""
    total = Bytes()
    for piece in range(pieces):
        elements = sum(slice_of(each, pieces, piece).size for each in tensors)
        total += sizes.crossing(elements, sizes.nodes, sizes.nodes)
    return total * (1 / pieces)
