"""Memory of an exchange: the copies that its kind keeps, wires, samples, and the node's meeting."""

from dataclasses import dataclass

from harness.doctor.need.buckets import BucketMemory
from harness.doctor.need.sizes import Sizes
from harness.doctor.need.wire import WireMemory
from harness.exchange.kinds import Crosses, Path


@dataclass(frozen=True)
class ExchangeMemory:
    """The exchange of one rank."""

    sizes: Sizes

    @property
    def resting(self) -> int:
        """Bytes that stay: the copies that the kind's traits name, the outer velocity, wires and
        samples."""
        sizes = self.sizes
        exchange, s = sizes.config.exchange, sizes.element_bytes
        traits = exchange.traits
        if traits.is_torchs:
            return 0 if sizes.ranks == 1 else traits.copies * sizes.shared * s
        if traits.path is Path.BUCKETS:
            return BucketMemory(sizes).resting
        if not (traits.meets and self._exchanges):
            return 0
        sent = sizes.part if sizes.config.classifier.layout == "node" else sizes.chunk
        slots = exchange.delay // self._pieces + 1
        under_way = exchange.delay / self._pieces
        kept = traits.copies + exchange.has_outer + slots * traits.copies_of_window
        wire = WireMemory(exchange.compression, s, sent, sizes.nodes)
        of_wire = wire.buffers(slots, under_way, feedback=traits.error_feedback)
        return (kept * sizes.part + self._sampled) * s + of_wire

    @property
    def _exchanges(self) -> bool:
        """Whether there is an exchange: a single node with local steps and no outer optimizer has
        none."""
        exchange = self.sizes.config.exchange
        return self.sizes.nodes > 1 or exchange.has_outer or not exchange.traits.local_steps

    @property
    def _pieces(self) -> int:
        """The largest number of pieces that may be chosen. Memory counted as certain ends a run,
        and more pieces take less."""
        exchange = self.sizes.config.exchange
        return max(exchange.pieces, exchange.max_pieces)

    @property
    def _sampled(self) -> int:
        """Elements of samples that wait for the value that they are compared with."""
        exchange, every = self.sizes.config.exchange, self.sizes.config.staleness.sample_every
        if not (exchange.delay and every):
            return 0
        if exchange.traits.crosses is Crosses.GRADIENTS:
            return -(-exchange.delay // every) * self.sizes.part
        # A piece that lands in the window in which it is sent again is compared there at once.
        return bool(exchange.delay % self._pieces) * self.sizes.part // self._pieces

    @property
    def arriving(self) -> int:
        """Peak during the backward pass."""
        by_buckets = self.sizes.config.exchange.traits.path is Path.BUCKETS
        return BucketMemory(self.sizes).arriving if by_buckets else 0

    @property
    def sampling(self) -> int:
        """Bytes of a new staleness sample, which is there before the previous one is freed."""
        exchange = self.sizes.config.exchange
        if not (exchange.delay and self.sizes.config.staleness.sample_every):
            return 0
        if not (exchange.traits.late and self._exchanges):
            return 0
        return self.sizes.part // self._pieces * self.sizes.element_bytes

    @property
    def meeting(self) -> int:
        """Peak of the node's reduce-scatter of gradients, or of DDP's average of parameters."""
        sizes = self.sizes
        if sizes.config.exchange.traits.crosses is Crosses.VALUES and sizes.ranks > 1:
            return 2 * sizes.shared * sizes.element_bytes
        alone = sizes.chunk == sizes.shared or sizes.ranks_per_node == 1
        return 0 if alone else (sizes.shared + sizes.chunk) * sizes.element_bytes
