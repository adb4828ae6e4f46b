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
    """Duration of sending a rank's whole part and waiting for the result."""

    def fewest_pieces(self, delay: int, most: int) -> int:
        """The fewest pieces of which each lands in time, at most `most`."""
        hidden_ms = SHARE * max(1, delay) * self.compute_ms
        return min(most, max(1, math.ceil(self.transfer_ms / hidden_ms)))
