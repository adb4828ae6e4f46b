"""Parts in a codec's bits: written, read back, and under way."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from harness.exchange.codecs import BLOCK, Codec, decode, encode, written
from harness.exchange.wire import Landing


class Writer:
    """Room in which parts [elements] are written into rows of bytes [r, b], and read."""

    def __init__(self, codec: Codec, elements: int, rows: int, blocks: int, like: Tensor) -> None:
        """Of each row so many `blocks`: all rows together hold a part."""
        self.codec = codec
        self.elements = elements
        self._values, self._spare = like.new_zeros(2, rows, blocks, BLOCK)

    def write(self, part: Tensor, rows: Tensor) -> None:
        values = self._values.view(-1)
        values[: self.elements] = part
        values[self.elements :] = 0.0  # another part may have been read into it
        encode(self.codec, self._values, self._spare, rows)

    def read(self, rows: Tensor) -> Tensor:
        """[elements], NaN where a value was not finite; room that the next call takes again."""
        return self._part(decode(self.codec, rows, self._values))

    def read_mean(self, one: Tensor, other: Tensor) -> Tensor:
        """As `read`, the mean of two."""
        total = decode(self.codec, one, self._values)
        total += decode(self.codec, other, self._spare)
        return self._part(total.mul_(0.5))

    def own(self, rows: Tensor) -> Tensor:
        """As `read`, for whoever wrote them: what became of finite values is finite."""
        return self._part(written(self.codec, rows, self._values))

    def _part(self, values: Tensor) -> Tensor:
        return values.view(-1)[: self.elements]


class Reader(Protocol):
    """A wire, of what it sends."""

    writer: Writer

    def mean(self, landed: Tensor) -> Tensor:
        """[elements] of what has landed; room that the next call takes again."""


@dataclass(frozen=True)
class CodedPart:
    """A part under way: what this rank sent, and what lands."""

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
