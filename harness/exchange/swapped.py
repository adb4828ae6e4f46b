"""A wire of narrow numbers between two ranks: each sends the other its whole part.

It sends the same number of bytes as the two hops of `rounded` between two ranks, but in one hop,
and the mean is not rounded again.
"""

from torch import Tensor, uint8

from harness.exchange.codecs import Codec, blocks_of, row_bytes
from harness.exchange.coded import CodedPart, Writer
from harness.exchange.wire import Carrier, Sent


class Swapped:
    """Sends each element in the bits of a codec."""

    exact = False
    owed = None

    def __init__(
        self, elements: int, slots: int, like: Tensor, carrier: Carrier, name: str, codec: Codec
    ) -> None:
        if carrier.size != 2:
            raise ValueError(f"{carrier.size} ranks cannot swap their parts")
        self._carrier = carrier
        self._name = name
        blocks = blocks_of(elements)
        self.writer = Writer(codec, elements, 1, blocks, like)
        self._rows = [
            like.new_zeros(1, row_bytes(codec, blocks), dtype=uint8) for _ in range(slots)
        ]

    def launch(self, part: Tensor, slot: int) -> Sent:
        row = self._rows[slot]
        self.writer.write(part, row)
        return CodedPart(self, row, self._carrier.launch_gather(row, f"{self._name}.{slot}"))

    def mean(self, landed: Tensor) -> Tensor:
        """The mean, the same on both ranks to the bit, because both add in the order of ranks."""
        return self.writer.read_mean(landed[:1], landed[1:])

    def settle(self, into: Tensor) -> None:
        """Does nothing, because this wire keeps no error of its own."""
