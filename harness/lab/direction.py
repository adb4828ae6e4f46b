"""One direction between two hosts: when a frame arrives that leaves now, and what is lost of it."""

import math
import random

from harness.lab.impairment import Impairment
from harness.lab.superframe import around, packets_in

WANDER_SECONDS = 0.1
"""In which the delay comes from one end of its range to the other: slower than frames follow each
other, since a delay drawn anew for each would, where none may overtake, be the longest of many."""


class Direction:
    """Frames arrive in the order in which they left."""

    def __init__(self, impairment: Impairment, generator: random.Random) -> None:
        self._impairment = impairment
        self._generator = generator
        self._place = generator.uniform(-1.0, 1.0)
        """Of the delay in its range."""
        self._left_at = -math.inf
        self._arrives_at = -math.inf
        self._packets_until_loss = self._draw_packets_until_loss()

    def change(self, impairment: Impairment) -> None:
        """For what leaves from now on; what is on its way keeps its time, and its place before."""
        self._impairment = impairment
        self._packets_until_loss = self._draw_packets_until_loss()

    def arrival(self, now: float) -> float:
        """Of a frame that leaves now; both in seconds on one clock."""
        delay = self._impairment.latency
        if self._impairment.jitter:
            delay += self._impairment.jitter * self._wander(now)
        self._arrives_at = max(self._arrives_at, now + delay)
        return self._arrives_at

    def _wander(self, now: float) -> float:
        """A random walk that the ends of its range throw back is everywhere equally often."""
        elapsed = min(max(0.0, now - self._left_at), 10 * WANDER_SECONDS)
        self._left_at = now
        step = self._generator.gauss(0.0, math.sqrt(elapsed / WANDER_SECONDS))
        self._place = abs((self._place + step - 1) % 4 - 2) - 1
        return self._place

    def surviving(self, frame: bytes) -> list[bytes]:
        """The frame without its lost packets: whole, nothing, or the pieces between them."""
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
        """Whole packets, geometrically distributed; infinite without loss."""
        loss = self._impairment.loss
        if loss == 0:
            return math.inf
        return math.floor(math.log(1 - self._generator.random()) / math.log1p(-loss))
