"""Averages each window's gradients over all ranks and waits: overlapped with the backward pass."""

from collections.abc import Callable

from torch import Tensor

from harness.exchange.buckets import Buckets
from harness.exchange.flat import Flat
from harness.parallel.replicas import Average
from harness.parallel.world import World


class Synchronous:
    """The baseline: flat all-reduces of buckets, launched as gradients come, waited for at once.

    Shared gradients are averaged over the world; a slice's over its replicas, where it has some.
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

        def launch_shared(piece: Tensor, bucket: int) -> Average:
            return world.everyone.launch_average(piece, f"shared.{bucket}")

        def launch_sliced(piece: Tensor, bucket: int) -> Average:
            return world.peers.launch_average(piece, f"sliced.{bucket}")

        self._buckets = [Buckets(shared, bucket_bytes, passes, launch_shared)]
        if sliced_has_replicas:
            self._buckets.append(Buckets(sliced, bucket_bytes, passes, launch_sliced))

    def after_backward(self, last: bool) -> bool:
        if last:
            for buckets in self._buckets:
                buckets.finish()
        return last

    def after_step(self, last: bool) -> None:
        return None

    def drain(self, step: Callable[[], None]) -> None:
        return None
