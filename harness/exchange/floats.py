"""Wires that send floating-point numbers: as they are, or in half precision."""

from dataclasses import dataclass

import torch
from torch import Tensor

from harness.exchange.wire import Carrier, Launched, Sent


class Floats:
    """Sends every element in `dtype`.

    In a narrower one, values are clamped so that the sum over the group stays finite; NaN stays
    NaN. What the type cannot hold, above its range or below its precision, is not sent. The sum
    itself is rounded once more, and that is not made good.
    """

    def __init__(
        self,
        elements: int,
        slots: int,
        like: Tensor,
        carrier: Carrier,
        name: str,
        dtype: torch.dtype,
    ) -> None:
        self.exact = dtype == like.dtype
        self._carrier = carrier
        self._name = name
        buffer = like.new_empty(elements, dtype=dtype)
        self._buffers = [(buffer.clone(), buffer.clone()) for _ in range(slots)]
        # One more than there are: each of them, and each sum of some, may be rounded up.
        self._limit = torch.finfo(dtype).max / (carrier.size + 1)
        self._clamped = None if self.exact else like.new_empty(elements)

    def launch(self, part: Tensor, slot: int) -> Sent:
        total, own = self._buffers[slot]
        if self._clamped is not None:
            part = torch.clamp(part, -self._limit, self._limit, out=self._clamped)
        own.copy_(part)
        total.copy_(own)
        launched = self._carrier.launch_sum(total, f"{self._name}.{slot}")
        return _SentFloats(total, own, launched, self._carrier.size)

    def forget(self) -> None:
        return None


@dataclass(frozen=True)
class _SentFloats:
    total: Tensor
    own: Tensor
    launched: Launched
    size: int

    def add_own(self, target: Tensor, factor: float) -> None:
        target.add_(self.own, alpha=factor)

    def mean(self, into: Tensor) -> None:
        self.launched.wait()
        into.copy_(self.total).div_(self.size)

    def correction(self, into: Tensor) -> None:
        self.mean(into)
        into.sub_(self.own)
