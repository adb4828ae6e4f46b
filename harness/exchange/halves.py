"""A wire of half-precision numbers, under one scale that keeps small values from rounding to 0.

Half precision holds values from 2^-24 to 65504. With a million classes an eighth of a gradient lies
below. So a part is multiplied by a power of two, which rounds nothing, such that the mean that
landed last would reach up to a sixteenth of what a rank may send. All ranks have read the same
sums, so they agree on the scale without asking each other.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.exchange.wire import Carrier, Launched, Sent

HEADROOM = 16
"""How many times larger than the largest mean that landed last a rank's value may be. What lies
above is clamped, and sent with the next messages."""
LEAST, MOST = -24, 64
"""Exponents of the scale."""


class Halves:
    """Sends every element as a half, clamped so that the sum over the group stays finite.

    What a half cannot hold, above its range or below its precision, is not sent. The sum itself is
    rounded once more, and that is not made good.
    """

    exact = False

    def __init__(
        self, elements: int, slots: int, like: Tensor, carrier: Carrier, name: str
    ) -> None:
        self._carrier = carrier
        self._name = name
        self._elements = elements
        self._buffers = [
            tuple(like.new_empty(2, elements, dtype=torch.float16)) for _ in range(slots)
        ]
        # One rank more than there are: each value, and each sum of some, may be rounded up.
        self._limit = torch.finfo(torch.float16).max / (carrier.size + 1)
        self._exponent = math.frexp(self._limit / HEADROOM)[1] - 1
        """2^exponent is what the largest mean stays below."""
        self._start = like.new_ones((), dtype=torch.float32)
        self._scale = self._start
        self._room = like.new_empty(elements)

    def launch(self, part: Tensor, slot: int) -> Sent:
        total, own = self._buffers[slot]
        torch.mul(part, self._scale, out=self._room)
        # Clamped, an infinity would look like a large value.
        self._room.nan_to_num_(math.nan, math.nan, math.nan).clamp_(-self._limit, self._limit)
        own.copy_(self._room)
        total.copy_(own)
        launched = self._carrier.launch_sum(total, f"{self._name}.{slot}")
        return _SentHalves(self, self._scale, total, own, launched)

    def forget(self) -> None:
        self._scale = self._start

    def floats(self, halves: Tensor) -> Tensor:
        """[n] of the part's own type. Room that the next call takes again."""
        return self._room.copy_(halves)

    def read(self, total: Tensor, scale: Tensor, into: Tensor) -> None:
        """Writes the mean, and takes the scale that it asks for."""
        into.copy_(total).div_(scale * self._carrier.size)
        if self._elements == 0:
            return
        low, high = into.aminmax()
        most = torch.maximum(-low, high).float()
        # most < 2^e. A float32 of exponent x has the bits (x + 127) << 23: exact on every machine.
        exponent = self._exponent - torch.frexp(most).exponent
        fitting = ((exponent.clamp_(LEAST, MOST) + 127) << 23).to(torch.int32).view(torch.float32)
        self._scale = torch.where(most.isfinite() & (most > 0), fitting, self._scale)


@dataclass(frozen=True)
class _SentHalves:
    wire: Halves
    scale: Tensor
    total: Tensor
    own: Tensor
    launched: Launched

    def add_own(self, target: Tensor, factor: float) -> None:
        target.add_(self.wire.floats(self.own).div_(self.scale), alpha=factor)

    def mean(self, into: Tensor) -> None:
        self.launched.wait()
        self.wire.read(self.total, self.scale, into)

    def correction(self, into: Tensor) -> None:
        self.mean(into)
        self.add_own(into, -1.0)
