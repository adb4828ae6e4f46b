"""Memory of gradients that are averaged in buckets during the backward pass."""

from dataclasses import dataclass
from functools import cached_property

from harness.doctor.need.sizes import Sizes
from harness.doctor.need.wire import WireMemory
from harness.exchange.buckets import bucket_sizes
from harness.exchange.carriers import route_of
from harness.parallel.slices import padded


@dataclass(frozen=True)
class BucketMemory:
    """The buckets of one rank, by the route of the exchange."""

    sizes: Sizes

    @property
    def _through_nodes(self) -> bool:
        exchange = self.sizes.config.exchange
        route = route_of(exchange, self.sizes.nodes, self.sizes.ranks_per_node)
        return exchange.traits.has_routes and route == "hierarchical"

    @cached_property
    def _shared(self) -> tuple[int, ...]:
        """Elements of each bucket of P."""
        sizes = self.sizes
        return bucket_sizes(
            sizes.anatomy.shared, sizes.config.exchange.bucket_bytes, sizes.element_bytes
        )

    @cached_property
    def _lossy_wires(self) -> tuple[WireMemory, ...]:
        """The wires of all buckets; none if the compression is exact."""
        sizes, group = self.sizes, self.sizes.ranks_per_node
        exchange, s = sizes.config.exchange, sizes.element_bytes
        if exchange.compression == "none":
            return ()
        crossing: list[tuple[int, int]] = []
        if sizes.config.classifier.layout == "node":
            own = bucket_sizes(sizes.anatomy.classifier(sizes.classes), exchange.bucket_bytes, s)
            crossing += [(elements, sizes.nodes) for elements in own]
        if self._through_nodes:
            crossing += [(padded(n, group) // group, sizes.nodes) for n in self._shared]
        else:
            crossing += [(elements, sizes.ranks) for elements in self._shared]
        return tuple(WireMemory(exchange.compression, s, *each) for each in crossing)

    @property
    def resting(self) -> int:
        """Bytes that stay: the wires, and on the hierarchical route this rank's share of each
        bucket, and a padded copy of each bucket that has no equal shares."""
        # What was received last stays until the next message is sent.
        own = sum(wire.buffers(under_way=1) for wire in self._lossy_wires)
        if not self._through_nodes:
            return own
        group = self.sizes.ranks_per_node
        shares = sum(padded(elements, group) // group for elements in self._shared)
        uneven = sum(padded(elements, group) for elements in self._shared if elements % group)
        return own + (shares + uneven) * self.sizes.element_bytes

    @property
    def arriving(self) -> int:
        """Peak during the backward pass: what the node's ranks send to this one, the sum of the
        largest bucket, and what wires receive in their second hop."""
        second_hops = sum(wire.second_hop for wire in self._lossy_wires)
        if not self._through_nodes:
            return second_hops
        summed = max(self._shared, default=0) // self.sizes.ranks_per_node
        return (sum(self._shared) + summed) * self.sizes.element_bytes + second_hops
