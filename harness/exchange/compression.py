"""`exchange.compression` by name: its wire, its bytes, and what it cannot do."""

from torch import Tensor

from harness.errors import UserError
from harness.exchange.floats import Floats
from harness.exchange.halves import Halves
from harness.exchange.lanes import Lanes, largest, message_bytes
from harness.exchange.wire import Carrier, Wire

BITS = {"int8": 8, "int4": 4}


def make_wire(
    compression: str, elements: int, slots: int, like: Tensor, carrier: Carrier, name: str
) -> Wire:
    """The wire for parts of `elements` values of the dtype and device of `like`.

    `slots` parts may be under way at once; `name` begins the collectives' names.
    """
    given = elements, slots, like, carrier, name
    if compression == "none" or carrier.size == 1:
        return Floats(*given)
    if compression == "fp16":
        return Halves(*given)
    return Lanes(*given, BITS[compression])


def sent_bytes(compression: str, elements: int, element_bytes: int, ranks: int) -> int:
    """Of one part of `elements` values, before the all-reduce's own factor."""
    if compression == "none" or ranks == 1:
        return elements * element_bytes
    if compression == "fp16":
        return elements * 2
    return message_bytes(elements, BITS[compression], ranks)


def check_compression(compression: str, nodes: int) -> None:
    """Raises UserError where a sum over so many nodes does not fit the bits of a value."""
    if compression in BITS and largest(BITS[compression], nodes) == 0:
        most = (2 ** BITS[compression] - 1) // 2
        raise UserError(
            f"exchange.compression={compression} sums at most {most} nodes, found {nodes}; use "
            f"int8 or fp16"
        )
