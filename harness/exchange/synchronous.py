"""Averages each window's gradients over all ranks and waits: overlapped with the backward pass."""

from collections.abc import Callable, Sequence

from torch import Tensor

from harness.exchange.buckets import Buckets, Launch
from harness.exchange.compression import make_wire
from harness.exchange.on_time import OnTime
from harness.exchange.wire import Feedback, Sent
from harness.parallel.group import Group


class Synchronous(OnTime):
    """The baseline: flat all-reduces of buckets, launched as gradients come, waited for at once.

    They go through torch.distributed: with nothing late about them, Horovod's cycles of
    negotiation only cost (benchmarks/baseline.py), and a baseline must be the strongest there is.
    """

    def __init__(self, buckets: Sequence[Buckets], passes: int) -> None:
        self.passes_per_step = passes
        self._buckets = buckets

    def after_backward(self, last: bool) -> bool:
        if last:
            for buckets in self._buckets:
                buckets.finish()
        return last


def average_over(group: Group, compression: str) -> Callable[[Tensor], Launch]:
    """For each bucket, what starts averaging it in place over the group."""

    def carry(bucket: Tensor) -> Launch:
        if compression == "none":
            return lambda: group.launch_average(bucket)
        return CompressedBucket(bucket, group, compression).launch

    return carry


class CompressedBucket:
    """A bucket and the wire it goes over."""

    def __init__(self, bucket: Tensor, group: Group, compression: str) -> None:
        self._bucket = bucket
        wire = make_wire(compression, len(bucket), 1, like=bucket, carrier=group, name="bucket")
        self._wire = Feedback(wire, len(bucket), like=bucket)
        self._sent: Sent | None = None

    def launch(self) -> "CompressedBucket":
        self._sent = self._wire.launch(self._bucket, 0)
        return self

    def wait(self) -> None:
        assert self._sent is not None
        self._sent.mean(into=self._bucket)
