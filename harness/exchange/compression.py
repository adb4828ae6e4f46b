"""`exchange.compression` by name: its wire, its bytes, and what it cannot do."""

from torch import Tensor

from harness.errors import UserError
from harness.exchange.floats import Floats
from harness.exchange.halves import Halves
from harness.exchange.lanes import Lanes, largest, message_bytes
from harness.exchange.wire import Carrier, Wire

BITS = {"int8": 8, "int4": 4}
FEWEST_LEVELS = 7
"""Whole numbers above zero, below which a run is warned: int8 has 63 on 2 nodes and 7 on 16."""


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
            f"{'fp16' if compression == 'int8' else 'int8 or fp16'}"
        )


def levels_of(compression: str, nodes: int) -> int | None:
    """How many whole numbers above zero a value is rounded to; None for what is no integer."""
    return largest(BITS[compression], nodes) if compression in BITS and nodes > 1 else None


def few_levels(compression: str, nodes: int) -> str:
    """One line, where integers that add up over so many nodes are very coarse; else nothing."""
    levels = levels_of(compression, nodes)
    if levels is None or levels >= FEWEST_LEVELS:
        return ""
    finer = levels_of("int8", nodes) or 0
    better = "fp16 or int8" if compression == "int4" and finer >= FEWEST_LEVELS else "fp16"
    return (
        f"exchange.compression={compression} over {nodes} nodes rounds to {2 * levels + 1} values, "
        f"-{levels} to {levels} times a scale, and what that does to accuracy is not known; use "
        f"{better}"
    )
