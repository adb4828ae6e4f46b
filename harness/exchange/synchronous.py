"""Averages each window's gradients over all ranks and waits: overlapped with the backward pass."""

from collections.abc import Sequence

from torch import Tensor

from harness.exchange.buckets import Buckets
from harness.exchange.carried import Strip
from harness.exchange.synchronous import OnTime
from harness.exchange.ways import Way


class Synchronous(OnTime):
    """The baseline: buckets of gradients, launched as they come, waited for at once.

    They go through torch.distributed: with nothing late about them, Horovod's cycles of
    negotiation only cost (benchmarks/baseline.py), and a baseline must be the strongest there is.
    """

    def __init__(self, ways: Sequence[Way], bucket_bytes: float, passes: int) -> None:
        self.passes_per_step = passes
        self._ways = ways
        self._buckets = [Buckets(way.flat, bucket_bytes, passes, way) for way in ways]

    def after_backward(self, last: bool) -> bool:
        if last:
            for buckets in self._buckets:
                buckets.finish()
        return last

    def carried(self) -> list[Strip]:
        return [strip for way in self._ways for strip in way.strips()]

    def agree_on(self, states: Sequence[Tensor]) -> None:
        # The optimizer's are equal: all ranks stepped with the same gradients.
        for way in self._ways:
            way.agree()
