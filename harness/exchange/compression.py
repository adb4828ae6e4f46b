"""`exchange.compression` by name: its wire and its bytes."""

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


def make_wire(
    compression: str,
    elements: int,
    slots: int,
    like: Tensor,
    carrier: Carrier,
    name: str,
    keeps_own: bool = True,
) -> Wire:
    """The wire for parts of `elements` values of the dtype and device of `like`.

    `slots` parts may be under way at once; `name` begins the collectives' names. Without
    `keeps_own` an exact wire gives means alone; a lossy one can always tell what it sent.
    """
    given = elements, slots, like, carrier, name
    if compression == "none" or carrier.size == 1 or elements == 0:
        return Floats(*given, keeps_own)
    coded = Swapped if carrier.size == 2 else Rounded
    return coded(*given, CODECS[compression])


def row_length(compression: str, elements: int, ranks: int) -> int:
    """Bytes of a lossy wire's row: what a rank sends to another one at once."""
    blocks = blocks_of(elements) if ranks == 2 else piece_blocks(elements, ranks)
    return row_bytes(CODECS[compression], blocks)


def crossing_bytes(
    compression: str, elements: int, element_bytes: int, ranks: int, nodes: int
) -> Bytes:
    """Sent by a rank to average one part over `ranks` that lie evenly on `nodes`."""
    if compression == "none" or ranks == 1:
        return all_reduce_bytes(elements * element_bytes, ranks, nodes)
    row = row_length(compression, elements, ranks)
    gathered = all_gather_bytes(row, ranks, nodes)
    return gathered if ranks == 2 else all_to_all_bytes(row, ranks, nodes) + gathered
