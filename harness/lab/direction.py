"""One direction between two hosts: when a frame arrives, and which of its packets are lost."""

import math
import random

from harness.lab.impairment import Impairment
from harness.lab.superframe import around, packets_in

WANDER_SECONDS = 0.1
"""Time in which the delay wanders by about half its range. It changes more slowly than frames
follow each other: frames may not overtake, so with a delay drawn anew for each frame, all of them
would have the longest of many."""


class Direction:
    """Delays and losses of one direction; frames arrive in the order in which they left."""

    def __init__(self, impairment: Impairment, generator: random.Random) -> None:
        self._impairment = impairment
        self._generator = generator
        self._place = generator.uniform(-1.0, 1.0)
        """Where the delay is in its range: -1 is latency - jitter, 1 is latency + jitter."""
        self._left_at = -math.inf
        self._arrives_at = -math.inf
        self._packets_until_loss = self._draw_packets_until_loss()

    def change(self, impairment: Impairment) -> None:
        """Applies to frames that leave from now on; those on their way still arrive, and first."""
        self._impairment = impairment
        self._packets_until_loss = self._draw_packets_until_loss()

    def arrival(self, now: float) -> float:
        """When a frame arrives that leaves at `now`; both are seconds on the same clock."""
        delay = self._impairment.latency
        if self._impairment.jitter:
            delay += self._impairment.jitter * self._wander(now)
        self._arrives_at = max(self._arrives_at, now + delay)
        return self._arrives_at

    def _wander(self, now: float) -> float:
        """The next place of a random walk that is reflected at -1 and 1.

        Its stationary distribution is uniform, so all delays of the range are equally frequent.
        """
        elapsed = min(max(0.0, now - self._left_at), 10 * WANDER_SECONDS)
        self._left_at = now
        step = self._generator.gauss(0.0, math.sqrt(elapsed / WANDER_SECONDS))
        # Reflection: x -> |((x - 1) mod 4) - 2| - 1 is a triangle wave of period 4 that maps x to
        # itself between -1 and 1.
        self._place = abs((self._place + step - 1) % 4 - 2) - 1
        return self._place

    def surviving(self, frame: bytes) -> list[bytes]:
        """The frame without its lost packets: the whole, nothing, or the pieces between losses."""
        pieces: list[bytes] = []
        rest: bytes | None = frame
        while rest is not None:
            count = packets_in(rest)
            if self._packets_until_loss >= count:
                self._packets_until_loss -= count
                return [*pieces, rest]
            before, rest = around(rest, int(self._packets_until_loss))
            pieces += [before] if before is not None else []
            self._packets_until_loss = self._draw_packets_until_loss()
        return pieces

    def _draw_packets_until_loss(self) -> float:
        """Packets until the next loss, geometrically distributed; infinite without loss."""
        loss = self._impairment.loss
        if loss == 0:
            return math.inf
        # P(n >= k) = (1 - loss)^k, inverted at a uniform u in (0, 1]: floor(ln u / ln(1 - loss)).
        return math.floor(math.log(1 - self._generator.random()) / math.log1p(-loss))
