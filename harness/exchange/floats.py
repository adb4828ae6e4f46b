"""A wire that sends floating-point numbers as they are."""

from dataclasses import dataclass

from torch import Tensor

from harness.exchange.wire import Carrier, Launched, Sent


class Floats:
    """Sends every element as it was given."""

    exact = True
    owed = None

    def __init__(
        self,
        elements: int,
        slots: int,
        like: Tensor,
        carrier: Carrier,
        name: str,
        keeps_own: bool,
    ) -> None:
        """`keeps_own` keeps what this rank sent beside the sum, for `add_own` and `correction`.

        That takes as much memory as the sum, so a wire that only gives means does without it.
        """
        self._carrier = carrier
        self._name = name
        self._totals = [like.new_empty(elements) for _ in range(slots)]
        self._owns = [like.new_empty(elements) for _ in range(slots if keeps_own else 0)]

    def launch(self, part: Tensor, slot: int) -> Sent:
        total = self._totals[slot].copy_(part)
        own = self._owns[slot].copy_(part) if self._owns else None
        launched = self._carrier.launch_sum(total, f"{self._name}.{slot}")
        return _SentFloats(total, own, launched, self._carrier.size)

    def settle(self, into: Tensor) -> None:
        return None


@dataclass(frozen=True)
class _SentFloats:
    total: Tensor
    own: Tensor | None
    launched: Launched
    size: int

    def add_own(self, target: Tensor, factor: float) -> None:
        target.add_(self._kept(), alpha=factor)

    def mean(self, into: Tensor) -> None:
        self.launched.wait()
        into.copy_(self.total).div_(self.size)

    def correction(self, into: Tensor) -> None:
        self.mean(into)
        into.sub_(self._kept())

    def _kept(self) -> Tensor:
        if self.own is None:
            raise ValueError("this wire gives only means; make it with keeps_own=True")
        return self.own
