"""Memory of one wire: the message, what arrives, and what was not sent."""

from dataclasses import dataclass

from harness.exchange.codecs import BLOCK, blocks_of
from harness.exchange.compression import row_length
from harness.exchange.rounded import piece_blocks


@dataclass(frozen=True)
class WireMemory:
    """A wire that averages `elements` values over `ranks`."""

    compression: str
    element_bytes: int
    elements: int
    ranks: int

    def buffers(self, slots: int = 1, under_way: float = 0.0, feedback: bool = True) -> int:
        """Bytes of the buffers, of the `under_way` parts that arrive between windows, and of the
        unsent remainder of a lossy wire with `feedback`."""
        elements, ranks, s = self.elements, self.ranks, self.element_bytes
        if self.compression == "none" or ranks == 1:
            # Gradients need the sum alone, movements also what this rank has sent.
            return (1 if feedback else 2) * slots * elements * s
        unsent = elements * s if feedback else 0
        row = row_length(self.compression, elements, ranks)
        arriving = int(under_way * ranks * row)
        if ranks == 2:  # the row sent, the rows that arrive, and room to encode and decode
            return slots * row + arriving + 2 * blocks_of(elements) * BLOCK * s + unsent
        room = piece_blocks(elements, ranks) * BLOCK * s
        # Rows: a piece for each rank, and the mean of this rank's piece. Room: to encode and decode
        # all pieces, and for this rank's piece its sum, an addend and the remainder of the mean.
        return slots * (ranks + 1) * row + arriving + (2 * ranks + 3) * room + unsent

    @property
    def second_hop(self) -> int:
        """Bytes that a lossy wire receives in its second hop while those of the first remain."""
        if self.ranks <= 2:  # two ranks need one hop
            return 0
        return self.ranks * row_length(self.compression, self.elements, self.ranks)

    @property
    def on_host(self) -> int:
        """Bytes of pinned memory in which a card's message under way crosses the host, by hops:
        what is sent, what arrived. torch rounds each up to a power of two."""
        if self.compression == "none":
            return power_of_two(self.elements * self.element_bytes)
        row = row_length(self.compression, self.elements, self.ranks)
        rows = (1, 2) if self.ranks == 2 else (self.ranks, self.ranks, 1, self.ranks)
        return sum(power_of_two(number * row) for number in rows)


def power_of_two(number: int) -> int:
    """The least one that is not smaller."""
    return 1 << (number - 1).bit_length() if number else 0
