"""The routes by which a bucket of gradients is averaged over ranks, beside the backward pass."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from harness.exchange.carried import Strip
from harness.exchange.compression import WireParts, make_wire
from harness.exchange.feedback import Feedback
from harness.exchange.flat import Flat
from harness.exchange.wire import Carrier, Launched, Sent
from harness.parallel.group import Group
from harness.parallel.line import Line, Running
from harness.parallel.pending import Pending
from harness.parallel.slices import padded


class Passage(Protocol):
    """The route of one bucket; after `wait` the bucket holds its mean."""

    def launch(self) -> Launched: ...

    def memory(self) -> list[Tensor]:
        """What a launch changes for those that follow."""

    def strips(self, flat: Flat) -> list[Strip]:
        """What its wire has not sent yet."""

    def agree(self) -> None:
        """Makes each rank owe the mean of what all owe. Collective over the ranks that average."""


class Way:
    """A route for all buckets of a flat gradient."""

    def __init__(self, flat: Flat, make: Callable[[Tensor, int], Passage]) -> None:
        """`make` returns the passage of a bucket, given the bucket and its start in `flat`."""
        self.flat = flat
        self._make = make
        self._passages: list[Passage] = []

    def __call__(self, bucket: Tensor) -> Callable[[], Launched]:
        start = int(bucket.storage_offset() - self.flat.grads.storage_offset())
        self._passages.append(self._make(bucket, start))
        return self._passages[-1].launch

    def memory(self) -> list[Tensor]:
        """What launches of all buckets change for those that follow."""
        return [tensor for passage in self._passages for tensor in passage.memory()]

    def strips(self) -> list[Strip]:
        """What the wires of all buckets have not sent yet."""
        return [strip for passage in self._passages for strip in passage.strips(self.flat)]

    def agree(self) -> None:
        """Makes each rank owe the mean of what all owe. Collective over the ranks that average."""
        for passage in self._passages:
            passage.agree()


def direct(flat: Flat, group: Group, compression: str) -> Way:
    """The route over all ranks that hold the gradient, in one collective per bucket."""
    if compression == "none":
        return Way(flat, lambda bucket, start: Whole(bucket, group))
    return Way(flat, lambda bucket, start: Crossing(bucket, start, group, compression))


@dataclass(frozen=True)
class Stops:
    """The groups and lines that carry a bucket through its node."""

    node: Group
    """Sums gradients over the node, each rank a share of the bucket; launched by the training
    thread."""
    across: Group
    """Averages a share over nodes; launched on its own line."""
    spread: Group
    """Sends the shares to all ranks of the node; launched on a second line."""
    to_across: Line
    to_spread: Line
    waiting: Callable[[], AbstractContextManager[None]]
    """Measures the training thread's waits for the result."""


def through_nodes(flat: Flat, stops: Stops, compression: str) -> Way:
    """The route through nodes: sum shares in the node, average each share over nodes, spread the
    result.

    Each rank of a node takes a share of the bucket and averages it with its peers on the other
    nodes. A node's link carries 2(M-1)/M of the bucket, the least possible. Each stop launches from
    one thread, bucket after bucket, so the order is the same on all ranks.
    """
    return Way(flat, lambda bucket, start: ThroughNode(bucket, start, stops, compression))


class Whole:
    """A bucket that is averaged exactly, in one collective."""

    def __init__(self, bucket: Tensor, group: Group) -> None:
        self._bucket = bucket
        self._group = group

    def launch(self) -> Launched:
        return self._group.launch_average(self._bucket)

    def memory(self) -> list[Tensor]:
        return []

    def strips(self, flat: Flat) -> list[Strip]:
        return []

    def agree(self) -> None:
        return None


class Crossing:
    """Averages gradients [n] over a lossy wire, with error feedback.

    The first `owned` of them are elements of a flat gradient, from `start` on; the rest is padding.
    """

    def __init__(
        self,
        part: Tensor,
        start: int,
        carrier: Carrier,
        compression: str,
        owned: int | None = None,
    ) -> None:
        self._part = part
        self._start = start
        self._owned = len(part) if owned is None else owned
        self._carrier = carrier
        parts = WireParts(len(part), part)
        wire = make_wire(compression, parts, carrier, f"bucket.{start}", keeps_own=False)
        self._wire = Feedback(wire, len(part), like=part)
        self._sent: Sent | None = None

    def launch(self) -> "Crossing":
        self._sent = self._wire.launch(self._part, 0)
        return self

    def wait(self) -> None:
        assert self._sent is not None
        self._sent.mean(into=self._part)

    def memory(self) -> list[Tensor]:
        return self._wire.memory

    def strips(self, flat: Flat) -> list[Strip]:
        if self._wire.unsent is None:
            return []
        owed = self._wire.unsent[: self._owned]
        return [Strip("exchange.unsent", flat, self._start, self._start + len(owed), owed)]

    def agree(self) -> None:
        self._wire.agree(self._carrier)


class ThroughNode:
    """Averages a bucket [n] through the ranks of its node; see `through_nodes`."""

    def __init__(self, bucket: Tensor, start: int, stops: Stops, compression: str) -> None:
        self._bucket = bucket
        self._stops = stops
        size = padded(len(bucket), stops.node.size)
        self._even = bucket if size == len(bucket) else bucket.new_zeros(size)
        """The bucket, padded to equal shares."""
        self._share = bucket.new_empty(size // stops.node.size)
        first = min(stops.node.index * len(self._share), len(bucket))
        owned = min(len(self._share), len(bucket) - first)
        self._across: Passage = Whole(self._share, stops.across)
        if compression != "none":
            given = self._share, start + first, stops.across, compression, owned
            self._across = Crossing(*given)
        self._spreading: Running[Pending] | None = None

    def launch(self) -> "ThroughNode":
        stops = self._stops
        if self._even is not self._bucket:
            self._even[: len(self._bucket)] = self._bucket
        adding = stops.node.launch_reduce_scatter(self._even)

        def cross() -> Launched:
            torch.div(adding.wait(), stops.node.size, out=self._share)
            return self._across.launch()

        crossing = stops.to_across.run(cross)

        def spread() -> Pending:
            crossing.result().wait()
            return stops.spread.launch_all_gather(self._share, self._even)

        self._spreading = stops.to_spread.run(spread)
        return self

    def wait(self) -> None:
        assert self._spreading is not None
        with self._stops.waiting():
            self._spreading.result().wait()
        if self._even is not self._bucket:
            self._bucket.copy_(self._even[: len(self._bucket)])

    def memory(self) -> list[Tensor]:
        return self._across.memory()

    def strips(self, flat: Flat) -> list[Strip]:
        return self._across.strips(flat)

    def agree(self) -> None:
        self._across.agree()
