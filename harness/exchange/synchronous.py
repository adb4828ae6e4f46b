"""Averages each window's gradients over all ranks and waits: overlapped with the backward pass."""

from collections.abc import Sequence

from torch import Tensor

from harness.exchange.buckets import Buckets, Launch
from harness.exchange.carried import Strip, agree
from harness.exchange.compression import make_wire
from harness.exchange.flat import Flat
from harness.exchange.on_time import OnTime
from harness.exchange.wire import Feedback, Sent
from harness.parallel.group import Group


class Synchronous(OnTime):
    """The baseline: flat all-reduces of buckets, launched as gradients come, waited for at once.

    They go through torch.distributed: with nothing late about them, Horovod's cycles of
    negotiation only cost (benchmarks/baseline.py), and a baseline must be the strongest there is.
    """

    def __init__(self, averages: Sequence["Average"], bucket_bytes: float, passes: int) -> None:
        self.passes_per_step = passes
        self._averages = averages
        self._buckets = [Buckets(each.flat, bucket_bytes, passes, each) for each in averages]

    def after_backward(self, last: bool) -> bool:
        if last:
            for buckets in self._buckets:
                buckets.finish()
        return last

    def carried(self) -> list[Strip]:
        return [strip for average in self._averages for strip in average.strips()]

    def agree_on(self, states: Sequence[Tensor]) -> None:
        # The optimizer's are equal: all ranks stepped with the same gradients.
        for average in self._averages:
            average.agree()


class Average:
    """For each bucket of a flat gradient, what starts averaging it in place over a group."""

    def __init__(self, flat: Flat, group: Group, compression: str) -> None:
        self.flat = flat
        self._group = group
        self._compression = compression
        self._compressed: list[CompressedBucket] = []

    def __call__(self, bucket: Tensor) -> Launch:
        if self._compression == "none":
            return lambda: self._group.launch_average(bucket)
        self._compressed.append(CompressedBucket(bucket, self._group, self._compression))
        return self._compressed[-1].launch

    def strips(self) -> list[Strip]:
        """What each bucket's wire has still to send."""
        found = []
        for each in self._compressed:
            if (unsent := each.wire.unsent) is not None:
                start = int(each.bucket.storage_offset() - self.flat.grads.storage_offset())
                strip = Strip("exchange.unsent", self.flat, start, start + len(unsent), unsent)
                found.append(strip)
        return found

    def agree(self) -> None:
        """Each rank owes the mean of what all owe. Collective over the group."""
        agree([strip.tensor for strip in self.strips()], self._group)
        for each in self._compressed:
            each.wire.forget()


class CompressedBucket:
    """A bucket and the wire it goes over."""

    def __init__(self, bucket: Tensor, group: Group, compression: str) -> None:
        self.bucket = bucket
        wire = make_wire(compression, len(bucket), 1, like=bucket, carrier=group, name="bucket")
        self.wire = Feedback(wire, len(bucket), like=bucket)
        self._sent: Sent | None = None

    def launch(self) -> "CompressedBucket":
        self._sent = self.wire.launch(self.bucket, 0)
        return self

    def wait(self) -> None:
        assert self._sent is not None
        self._sent.mean(into=self.bucket)
