"""Parts written in a codec's bits, read back, and in flight."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from harness.exchange.codecs import BLOCK, Codec, decode, encode, written
from harness.exchange.wire import Landing


class Writer:
    """Buffers in which parts [elements] are written to rows of bytes [r, b] and read back."""

    def __init__(self, codec: Codec, elements: int, rows: int, blocks: int, like: Tensor) -> None:
        """Each row has `blocks` blocks; all rows together hold one part."""
        self.codec = codec
        self.elements = elements
        self._values, self._spare = like.new_zeros(2, rows, blocks, BLOCK)

    def write(self, part: Tensor, rows: Tensor) -> None:
        values = self._values.view(-1)
        values[: self.elements] = part
        values[self.elements :] = 0.0  # an earlier read may have left values there
        encode(self.codec, self._values, self._spare, rows)

    def read(self, rows: Tensor) -> Tensor:
        """The values, [elements], NaN if a value was not finite. The next call reuses this
        memory."""
        return self._part(decode(self.codec, rows, self._values))

    def read_mean(self, one: Tensor, other: Tensor) -> Tensor:
        """The mean of two rows' values; see `read`."""
        total = decode(self.codec, one, self._values)
        total += decode(self.codec, other, self._spare)
        return self._part(total.mul_(0.5))

    def own(self, rows: Tensor) -> Tensor:
        """What the writer of `rows` sent, as receivers read it; see `codecs.written`."""
        return self._part(written(self.codec, rows, self._values))

    def _part(self, values: Tensor) -> Tensor:
        return values.view(-1)[: self.elements]


class Reader(Protocol):
    """The side of a wire that reads what has landed."""

    writer: Writer

    def mean(self, landed: Tensor) -> Tensor:
        """The mean, [elements], of what has landed. The next call reuses this memory."""


@dataclass(frozen=True)
class CodedPart:
    """A part in flight: the rows that this rank sent, and the result to come."""

    wire: Reader
    rows: Tensor
    landing: Landing

    def add_own(self, target: Tensor, factor: float) -> None:
        target.add_(self.wire.writer.own(self.rows), alpha=factor)

    def mean(self, into: Tensor) -> None:
        into.copy_(self.wire.mean(self.landing.wait()))

    def correction(self, into: Tensor) -> None:
        self.mean(into)
        self.add_own(into, -1.0)
