"""Averages each window's gradients over all ranks and waits: overlapped with the backward pass."""

from collections.abc import Callable

from harness.exchange.buckets import Buckets
from harness.exchange.flat import Flat
from harness.parallel.world import World


class Synchronous:
    """The baseline: flat all-reduces of buckets, launched as gradients come, waited for at once.

    Shared gradients are averaged over the world; a slice's over its replicas, where it has some.
    They go through torch.distributed: with nothing late about them, Horovod's cycles of
    negotiation only cost (benchmarks/baseline.py), and a baseline must be the strongest there is.
    """

    def __init__(
        self,
        shared: Flat,
        sliced: Flat,
        sliced_has_replicas: bool,
        world: World,
        passes: int,
        bucket_bytes: float,
    ) -> None:
        self.passes_per_step = passes

        self._buckets = [Buckets(shared, bucket_bytes, passes, world.everyone.launch_average)]
        if sliced_has_replicas:
            self._buckets.append(
                Buckets(sliced, bucket_bytes, passes, world.replicas.launch_average)
            )

    def after_backward(self, last: bool) -> bool:
        if last:
            for buckets in self._buckets:
                buckets.finish()
        return last

    def after_step(self, last: bool) -> None:
        return None

    def drain(self, step: Callable[[], None]) -> None:
        return None
