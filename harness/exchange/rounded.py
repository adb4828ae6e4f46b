"""A wire of narrow numbers that adds up in full precision: as exact among many ranks as among few.

A part is cut into as many pieces as there are ranks. Each rank writes all pieces in few bits and
sends each rank its piece. That rank reads the pieces, adds them up in the parameters' precision,
writes their mean in few bits and sends it to all: an all-reduce in two hops, each of which carries
(M-1)/M of the part. Error feedback covers the second rounding too: the rank that rounds keeps the
error and adds it to its next mean.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from harness.exchange.codecs import (
    BLOCK,
    Codec,
    add_written,
    blocks_of,
    encode,
    marks,
    row_bytes,
)
from harness.exchange.coded import CodedPart, Writer
from harness.exchange.wire import Carrier, Sent


def piece_blocks(elements: int, ranks: int) -> int:
    """Number of blocks in each rank's piece."""
    return -(-blocks_of(elements) // ranks)


class Rounded:
    """Sends each element in the bits of a codec."""

    exact = False

    def __init__(
        self, elements: int, slots: int, like: Tensor, carrier: Carrier, name: str, codec: Codec
    ) -> None:
        self._carrier = carrier
        self._name = name
        self._codec = codec
        ranks, blocks = carrier.size, piece_blocks(elements, carrier.size)
        size = row_bytes(codec, blocks)
        self.writer = Writer(codec, elements, ranks, blocks, like)
        self._rows = [like.new_zeros(ranks, size, dtype=torch.uint8) for _ in range(slots)]
        # The reduction runs on a thread beside training, so it needs its own buffers.
        self._sum, self._addend = like.new_zeros(2, 1, blocks, BLOCK)
        self.owed = like.new_zeros(1, blocks, BLOCK)
        """The rounding error that this rank has not yet added to a mean of its piece, always
        finite."""
        self._mean_rows = [like.new_zeros(1, size, dtype=torch.uint8) for _ in range(slots)]

    def launch(self, part: Tensor, slot: int) -> Sent:
        rows = self._rows[slot]
        self.writer.write(part, rows)
        reduce = self._reduce_into(self._mean_rows[slot])
        landing = self._carrier.launch_reduce(rows, reduce, f"{self._name}.{slot}")
        return CodedPart(self, rows, landing)

    def mean(self, landed: Tensor) -> Tensor:
        return self.writer.read(landed)

    def settle(self, into: Tensor) -> None:
        elements = self.writer.elements
        start = min(self._carrier.index * self.owed.numel(), elements)
        stop = min(start + self.owed.numel(), elements)
        owed = self.owed.view(-1)[: stop - start]
        into[start:stop].add_(owed, alpha=self._carrier.size)
        self.owed.zero_()

    def _reduce_into(self, mean_row: Tensor) -> Callable[[Tensor], Tensor]:
        def reduce(rows: Tensor) -> Tensor:
            total = self._sum.copy_(self.owed)
            for row in rows:  # in the order of ranks
                add_written(self._codec, row[None], 1 / len(rows), total, self._addend)
            marked = marks(rows, total.shape[1]).any(dim=0)[None]
            encode(self._codec, total, self._addend, mean_row, marked)
            self.owed.copy_(total)
            add_written(self._codec, mean_row, -1.0, self.owed, self._addend)
            return mean_row[0]

        return reduce
