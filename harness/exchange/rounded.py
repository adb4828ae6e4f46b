"""A wire of narrow numbers that adds up in wide ones: as precise among many ranks as among few.

A part is cut into as many pieces as there are ranks. Each rank writes all of them in few bits and
sends every rank its piece; that one reads them, adds them up in the parameters' own precision,
writes their mean in few bits again, and sends it to all: an all-reduce in two hops, of which each
carries (M-1)/M of the part. The second rounding is made good as the first is: what it leaves is
kept by the one who rounded, and added to the next mean.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.exchange.codecs import (
    BLOCK,
    CODECS,
    Codec,
    add_written,
    blocks_of,
    decode,
    encode,
    marks,
    row_bytes,
    written,
)
from harness.exchange.wire import Carrier, Landing, Sent


def piece_blocks(elements: int, ranks: int) -> int:
    """Blocks of each rank's piece."""
    return -(-blocks_of(elements) // ranks)


def piece_bytes(compression: str, elements: int, ranks: int) -> int:
    """What a rank sends to each other one, twice, of a part of so many elements."""
    return row_bytes(CODECS[compression], piece_blocks(elements, ranks))


class Rounded:
    """Sends each element in the bits of a codec."""

    exact = False

    def __init__(
        self, elements: int, slots: int, like: Tensor, carrier: Carrier, name: str, codec: Codec
    ) -> None:
        self._carrier = carrier
        self._name = name
        self.codec = codec
        self.elements = elements
        ranks, blocks = carrier.size, piece_blocks(elements, carrier.size)
        size = row_bytes(codec, blocks)
        self._rows = [like.new_zeros(ranks, size, dtype=torch.uint8) for _ in range(slots)]
        self._room, self._spare = like.new_zeros(2, ranks, blocks, BLOCK)
        # Beside training a rank sums up its piece: it has room of its own for that.
        self._sum, self._addend = like.new_zeros(2, 1, blocks, BLOCK)
        self._owed = like.new_zeros(1, blocks, BLOCK)
        """What this rank has still to add to the mean of its piece, always finite."""
        self._mean_rows = [like.new_zeros(1, size, dtype=torch.uint8) for _ in range(slots)]

    def launch(self, part: Tensor, slot: int) -> Sent:
        room = self._room.view(-1)
        room[: self.elements] = part
        room[self.elements :] = 0.0  # another part may have been read into it
        rows = self._rows[slot]
        encode(self.codec, self._room, self._spare, rows)
        reduce = self._reduce_into(self._mean_rows[slot])
        return _Sent(self, rows, self._carrier.launch_reduce(rows, reduce, f"{self._name}.{slot}"))

    def settle(self, into: Tensor) -> None:
        start = min(self._carrier.index * self._owed.numel(), self.elements)
        stop = min(start + self._owed.numel(), self.elements)
        owed = self._owed.view(-1)[: stop - start]
        into[start:stop].add_(owed, alpha=self._carrier.size)
        self._owed.zero_()

    def _reduce_into(self, mean_row: Tensor) -> Callable[[Tensor], Tensor]:
        def reduce(rows: Tensor) -> Tensor:
            total = self._sum.copy_(self._owed)
            for row in rows:  # in the order of ranks
                add_written(self.codec, row[None], 1 / len(rows), total, self._addend)
            marked = marks(self.codec, rows, total.shape[1]).any(dim=0)[None]
            encode(self.codec, total, self._addend, mean_row, marked)
            self._owed.copy_(total)
            add_written(self.codec, mean_row, -1.0, self._owed, self._addend)
            return mean_row[0]

        return reduce

    def mean(self, rows: Tensor) -> Tensor:
        """[elements] as all have sent them; room that the next call takes again."""
        return decode(self.codec, rows, self._room).view(-1)[: self.elements]

    def own(self, rows: Tensor) -> Tensor:
        """[elements] as this rank has; room that the next call takes again."""
        return written(self.codec, rows, self._room).view(-1)[: self.elements]


@dataclass(frozen=True)
class _Sent:
    wire: Rounded
    rows: Tensor
    landing: Landing

    def add_own(self, target: Tensor, factor: float) -> None:
        target.add_(self.wire.own(self.rows), alpha=factor)

    def mean(self, into: Tensor) -> None:
        into.copy_(self.wire.mean(self.landing.wait()))

    def correction(self, into: Tensor) -> None:
        self.mean(into)
        self.add_own(into, -1.0)
