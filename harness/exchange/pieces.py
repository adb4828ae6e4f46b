"""Into how many pieces an averaged model goes: the fewest of which each lands in time."""

import math
from dataclasses import dataclass

SHARE = 0.7
"""Of the time until it is waited for, that a transfer may take: times vary, links are shared."""


@dataclass(frozen=True)
class Pace:
    """What was measured, the slowest rank's, milliseconds."""

    compute_ms: float
    """Of a window in which nodes do not meet."""
    transfer_ms: float
    """Of all that a rank sends of its part, and waits for."""

    def pieces(self, delay: int, most: int) -> int:
        """The fewest of which each lands in time."""
        hidden_ms = SHARE * max(1, delay) * self.compute_ms
        return min(most, max(1, math.ceil(self.transfer_ms / hidden_ms)))
