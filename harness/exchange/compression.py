"""The wire of each `exchange.compression`, and the bytes that it sends."""

from dataclasses import dataclass

from torch import Tensor

from harness.exchange.codecs import CODECS, blocks_of, row_bytes
from harness.exchange.floats import Floats
from harness.exchange.rounded import Rounded, piece_blocks
from harness.exchange.swapped import Swapped
from harness.exchange.wire import Carrier, Wire
from harness.measure.traffic import (
    Bytes,
    all_gather_bytes,
    all_reduce_bytes,
    all_to_all_bytes,
)


@dataclass(frozen=True)
class WireParts:
    """The parts that a wire averages, all of one length and type."""

    elements: int
    """Values in a part."""
    like: Tensor
    """Any tensor with the dtype and device of the parts."""
    slots: int = 1
    """Parts that may be under way at once."""


def make_wire(
    compression: str, parts: WireParts, carrier: Carrier, name: str, keeps_own: bool = True
) -> Wire:
    """The wire for these parts over the ranks of `carrier`.

    `name` begins the names of its collectives. Without `keeps_own` an exact wire gives means only;
    a lossy one always keeps what it sent.
    """
    given = parts.elements, parts.slots, parts.like, carrier, name
    if compression == "none" or carrier.size == 1 or parts.elements == 0:
        return Floats(*given, keeps_own)
    # Between two ranks one hop sends as many bytes as two, and rounds the mean once less.
    coded = Swapped if carrier.size == 2 else Rounded
    return coded(*given, CODECS[compression])


def row_length(compression: str, elements: int, ranks: int) -> int:
    """Bytes of a lossy wire's row, which a rank sends to one other rank."""
    blocks = blocks_of(elements) if ranks == 2 else piece_blocks(elements, ranks)
    return row_bytes(CODECS[compression], blocks)


def crossing_bytes(
    compression: str, elements: int, element_bytes: int, ranks: int, nodes: int
) -> Bytes:
    """Bytes sent by a rank to average one part over `ranks`, spread evenly on `nodes`."""
    if compression == "none" or ranks == 1:
        return all_reduce_bytes(elements * element_bytes, ranks, nodes)
    row = row_length(compression, elements, ranks)
    gathered = all_gather_bytes(row, ranks, nodes)
    return gathered if ranks == 2 else all_to_all_bytes(row, ranks, nodes) + gathered
