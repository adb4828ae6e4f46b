"""Whether late exchanges land in time: how many pieces that takes, and how long a window is."""

import math
from dataclasses import dataclass

SHARE = 0.7
"""Share of the time before its use that a transfer may take: times vary, and links are shared."""


@dataclass(frozen=True)
class PieceTimes:
    """Measured times of the slowest rank, milliseconds."""

    compute_ms: float
    """Duration of a window in which nodes do not communicate."""
    transfer_ms: float
    """Duration of sending what is to be cut and waiting for the result: a rank's whole part, or its
    chunk if the slice has a pace of its own."""
    beside_ms: float = 0.0
    """The same of what each window sends beside it, which is a piece of that slice."""

    def fewest_pieces(self, delay: int, most: int) -> int:
        """The fewest pieces of which each lands in time, at most `most`."""
        hidden_ms = SHARE * max(1, delay) * self.compute_ms - self.beside_ms
        if hidden_ms <= 0:
            return most
        return min(most, max(1, math.ceil(self.transfer_ms / hidden_ms)))


def late_window(busy: float, transfer: float, least: float, delay: int, lands_first: bool) -> float:
    """Time of a window of a late exchange, in the unit of the times given.

    `busy`: what the window does itself. `transfer`: from the launch of an exchange to its result.
    `least`: the part of it that cannot overlap the next exchange's. `lands_first`: whether an
    exchange lands before the next is launched.
    """
    # If it does, `delay` windows cover one exchange. If not, the one of `delay` windows ago is
    # awaited after a launch, so delay + 1 windows cover the compute of one and its exchange.
    together = transfer / delay if lands_first else (busy + transfer) / (delay + 1)
    return max(busy, least, together)
