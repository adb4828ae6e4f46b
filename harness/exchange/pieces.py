"""The number of pieces of an averaged model: the fewest of which each lands in time."""

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
