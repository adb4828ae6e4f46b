"""Averages each window's gradients over all ranks during the backward pass, and waits."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor

from harness.exchange.buckets import Buckets
from harness.exchange.carried import Strip
from harness.exchange.lateness import ON_TIME, Lateness
from harness.exchange.ways import Way


class NothingInFlight:
    """The methods of an exchange with nothing in flight after a step and equal values on all
    nodes."""

    averages_in_backward = True

    def changed_in_backward(self) -> list[Tensor]:
        return []

    def dropped(self) -> bool:
        return False

    def after_step(self) -> None:
        return None

    def at_mean(self) -> AbstractContextManager[Tensor | None]:
        return nullcontext()

    def divergence_before_drain(self) -> Callable[[], Tensor] | None:
        return None

    def lateness(self) -> Lateness:
        return ON_TIME

    def drain(self, step: Callable[[], None]) -> None:
        return None

    def carried(self) -> list[Strip]:
        return []

    def agree_on(self, states: Sequence[Tensor]) -> None:
        return None


class Synchronous(NothingInFlight):
    """The baseline: averages buckets of gradients as they become ready, and waits at the window's
    end.

    Buckets go through torch.distributed. Since nothing is late, Horovod's negotiation cycles would
    only cost time (benchmarks/baseline.py), and a baseline must be the strongest available.
    """

    def __init__(self, ways: Sequence[Way], bucket_bytes: float, passes: int) -> None:
        self.passes_per_step = passes
        self._ways = ways
        self._buckets = [Buckets(way.flat, bucket_bytes, passes, way) for way in ways]

    def gradients_ready(self, last: bool) -> bool:
        if last:
            for buckets in self._buckets:
                buckets.finish()
        return last

    def changed_in_backward(self) -> list[Tensor]:
        return [tensor for way in self._ways for tensor in way.memory()]

    def carried(self) -> list[Strip]:
        return [strip for way in self._ways for strip in way.strips()]

    def agree_on(self, states: Sequence[Tensor]) -> None:
        # The optimizers' states are equal already: all ranks stepped with the same gradients.
        for way in self._ways:
            way.agree()
