"""Which of several exchanges is preferred: of those that are fast enough, the one that costs the
least accuracy. The planner and `exchange.kind=auto` judge by the same rules."""

from harness.exchange.codecs import COMPRESSIONS
from harness.exchange.kinds import PLANNED, KindName

MIN_LATE_SPEEDUP = 1.05
"""Speed-up over the fastest that waits with the same K from which a late one pays; less is within
the variation of times."""
FAST_ENOUGH = 0.9
"""Fraction of the highest images/s that is fast enough: the rest costs more accuracy than time."""


def accuracy_cost(
    passes: int, pieces: int, compression: str, kind: KindName
) -> tuple[int, int, int, int]:
    """The expected cost in accuracy, as a key that sorts the least costly first.

    The worst is rarer steps, then parameters averaged more rarely, in pieces, then fewer bits, then
    staleness: the reverse of the order in which remedies are tried (hide communication, then
    compress it, then communicate less often).
    """
    return passes, pieces, COMPRESSIONS.index(compression), PLANNED.index(kind)
