"""Memory of an exchange: the copies that its kind keeps, wires, samples, and the node's meeting."""

from dataclasses import dataclass

from harness.doctor.need.buckets import BucketMemory
from harness.doctor.need.sizes import Sizes
from harness.doctor.need.wire import WireMemory, power_of_two
from harness.exchange.kinds import Crosses, Path


@dataclass(frozen=True)
class Rotation:
    """Pieces that are sent in turn."""

    elements: int
    sent: int
    """Elements that cross to other nodes."""
    pieces: int
    rested: int = 0
    """Elements of a slice that a window does not send."""

    @property
    def piece(self) -> int:
        """Elements of a piece."""
        return self.elements // self.pieces

    def slots(self, delay: int) -> int:
        """Messages of a piece that may be under way at once."""
        return delay // self.pieces + 1


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
        kept = traits.copies + exchange.has_outer
        kept += (exchange.delay + 1) * traits.copies_of_window
        wires = sum(self._wires(each) for each in self._rotations)
        # Of drawn rows alone the movement is kept, not of the whole slice.
        rested = self._rotations[-1].rested
        return (kept * sizes.part - rested + self._sampled) * s + wires

    def _wires(self, rotation: Rotation) -> int:
        """Bytes of the wires of a rotation's pieces."""
        sizes, exchange = self.sizes, self.sizes.config.exchange
        slots, under_way = rotation.slots(exchange.delay), exchange.delay / rotation.pieces
        wire = WireMemory(exchange.compression, sizes.element_bytes, rotation.sent, sizes.nodes)
        return wire.buffers(slots, under_way, feedback=exchange.traits.error_feedback)

    @property
    def pinned(self) -> int:
        """Bytes of host memory through which Horovod carries a card's parts: of all messages under
        way, and of a part that is waited for, as in an evaluation."""
        sizes, exchange = self.sizes, self.sizes.config.exchange
        if not (sizes.cards and sizes.nodes > 1 and exchange.by_horovod):
            return 0
        s, rotations = sizes.element_bytes, self._rotations
        sent = [each.sent // each.pieces for each in rotations]
        wires = [WireMemory(exchange.compression, s, each, sizes.nodes) for each in sent]
        waited_for = max((each.sent + each.rested) // each.pieces for each in rotations)
        under_way = (exchange.delay + 1) * sum(wire.on_host for wire in wires)
        return under_way + power_of_two(waited_for * s)

    @property
    def _exchanges(self) -> bool:
        """Whether there is an exchange: a single node with local steps and no outer optimizer has
        none."""
        exchange = self.sizes.config.exchange
        return self.sizes.nodes > 1 or exchange.has_outer or not exchange.traits.local_steps

    @property
    def _rotations(self) -> list[Rotation]:
        """What is sent in turn, with the largest number of pieces that may be chosen. Memory
        counted as certain ends a run, and more pieces take less."""
        sizes, exchange = self.sizes, self.sizes.config.exchange
        pieces = max(exchange.pieces, exchange.max_pieces)
        sliced = sizes.sliced if sizes.config.classifier.layout == "node" else 0
        of_slice = exchange.slice_pieces if exchange.max_pieces else exchange.slice_pace
        if exchange.slice_rows == "drawn":
            drawn = sizes.drawn_rows * sizes.anatomy.per_class
            return [
                Rotation(sizes.chunk, sizes.chunk, pieces),
                Rotation(drawn, drawn, 1, sizes.sliced - drawn),
            ]
        if of_slice is None:
            return [Rotation(sizes.part, sizes.chunk + sliced, pieces)]
        return [
            Rotation(sizes.chunk, sizes.chunk, pieces),
            Rotation(sliced, sliced, of_slice),
        ]

    @property
    def _sampled(self) -> int:
        """Elements of samples that wait for the value that they are compared with."""
        exchange, every = self.sizes.config.exchange, self.sizes.config.staleness.sample_every
        if not (exchange.delay and every):
            return 0
        if exchange.traits.crosses is Crosses.GRADIENTS:
            return -(-exchange.delay // every) * self.sizes.part
        # A piece waits until it is sent again, which may be in the window in which it lands.
        return sum(
            -(-(-exchange.delay % each.pieces) // every) * each.piece for each in self._rotations
        )

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
        return sum(each.piece for each in self._rotations) * self.sizes.element_bytes

    @property
    def meeting(self) -> int:
        """Peak of the node's reduce-scatter of gradients, or of DDP's average of parameters."""
        sizes = self.sizes
        if sizes.config.exchange.traits.crosses is Crosses.VALUES and sizes.ranks > 1:
            return 2 * sizes.shared * sizes.element_bytes
        alone = sizes.chunk == sizes.shared or sizes.ranks_per_node == 1
        return 0 if alone else (sizes.shared + sizes.chunk) * sizes.element_bytes
