"""A wire that sends floating-point numbers as they are."""

from dataclasses import dataclass

from torch import Tensor

from harness.exchange.wire import Carrier, Launched, Sent


class Floats:
    """Sends every element as it was given."""

    exact = True

    def __init__(
        self, elements: int, slots: int, like: Tensor, carrier: Carrier, name: str
    ) -> None:
        self._carrier = carrier
        self._name = name
        self._buffers = [tuple(like.new_empty(2, elements)) for _ in range(slots)]

    def launch(self, part: Tensor, slot: int) -> Sent:
        total, own = self._buffers[slot]
        own.copy_(part)
        total.copy_(own)
        launched = self._carrier.launch_sum(total, f"{self._name}.{slot}")
        return _SentFloats(total, own, launched, self._carrier.size)

    def settle(self, into: Tensor) -> None:
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
