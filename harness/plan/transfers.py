"""What ranks send to each other in a window, on either route, and how long that takes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from harness.exchange.kinds import Crosses
from harness.measure.traffic import Bytes
from harness.plan.machines import Cluster
from harness.plan.workload import Workload

POWER_SGD_COLLECTIVES = 3
"""Collectives of PowerSGD, one after the other: uncompressed vectors, then each factor."""


@dataclass(frozen=True)
class CollectiveSteps:
    """The consecutive steps of a collective, until the first byte has been everywhere."""

    across: int
    """Steps between nodes."""
    inside: int = 0
    """Steps within a node."""

    def __mul__(self, times: int) -> "CollectiveSteps":
        return CollectiveSteps(self.across * times, self.inside * times)

    def seconds(self, step: float, latency: float) -> float:
        """Seconds of all steps: `step` for one between nodes, `latency` for one within a node."""
        return self.across * step + self.inside * latency

    def step(self, seconds: float, latency: float) -> float:
        """Seconds of a step between nodes, if all steps together take `seconds`."""
        return max(0.0, seconds - self.inside * latency) / self.across


def gather_steps(nodes: int, per_node: int, on_cards: bool) -> CollectiveSteps:
    """Steps of a gather or reduce-scatter: once round a ring of all ranks, ordered by node.

    Between processes on cores every step counts as one between nodes, because its cost is waking
    up the receiver. On cards, a ring of N ranks on M nodes has N - 1 steps, M of them between nodes
    (M - 1 with one rank per node).
    """
    ranks = nodes * per_node
    if not on_cards:
        return CollectiveSteps(ranks - 1)
    across = 0 if nodes == 1 else min(nodes, ranks - 1)
    return CollectiveSteps(across, ranks - 1 - across)


def all_reduce_steps(nodes: int, per_node: int, on_cards: bool) -> tuple[CollectiveSteps, ...]:
    """The alternatives of an all-reduce: twice round the ring, or on cards up and down a tree.

    NCCL uses a tree of nodes, of depth log2(nodes), if there are many of them.
    """
    ring = gather_steps(nodes, per_node, on_cards) * 2
    if not on_cards:
        return (ring,)
    return ring, CollectiveSteps(math.ceil(math.log2(nodes)), per_node - 1) * 2


def crossing_steps(nodes: int, lossy: bool, on_cards: bool) -> tuple[CollectiveSteps, ...]:
    """The alternatives of a mean over one rank per node.

    With lossy compression, two nodes swap their parts in a single step.
    """
    if lossy and nodes == 2:
        return (gather_steps(nodes, 1, on_cards),)
    return all_reduce_steps(nodes, 1, on_cards)


def quickest(ways: Sequence[CollectiveSteps], step: float, latency: float) -> float:
    """Seconds of the fastest alternative."""
    return min(way.seconds(step, latency) for way in ways)


def step_seconds_of(ways: Sequence[CollectiveSteps], seconds: float, latency: float) -> float:
    """The `step` for which `quickest` gives `seconds`: its inverse."""
    # min_i f_i(step) = seconds, with increasing f_i, is solved by the largest of the solutions.
    return max(way.step(seconds, latency) for way in ways)


@dataclass(frozen=True)
class Transfer:
    """A simultaneous transfer of all ranks of a node through the node's port."""

    start: float = 0.0
    """Seconds until bytes move."""
    wire: float = 0.0
    """Seconds that the port is occupied, at its lasting rate."""
    own: float = 0.0
    """Seconds that a rank's thread needs at least."""
    burst: float = 0.0
    """Seconds of `wire` that a port that has rested sends at once."""
    taken: float = 0.0
    """Seconds that the transfer's threads take from the ranks' compute, if no core is idle."""

    @property
    def seconds(self) -> float:
        """Seconds through a port that has rested, with nothing else under way."""
        return self.start + max(self.wire - min(self.burst, self.wire), self.own)


@dataclass(frozen=True)
class Launch:
    """A transfer that starts during the last backward pass."""

    arrival: float
    """Time at which its gradients are ready, as a fraction of the backbone's backward pass."""
    transfer: Transfer


class Transfers:
    """The transfers of one window."""

    def __init__(self, cluster: Cluster, work: Workload) -> None:
        self._cluster = cluster
        self._work = work
        self._exchange = work.config.exchange
        self._lossy = work.config.exchange.compression != "none"
        self._by_horovod = work.config.exchange.by_horovod
        self._grid = work.nodes, work.ranks_per_node, cluster.on_cards

    def slice_wait(self) -> float:
        """Seconds per micro-batch of the slice group's collectives inside the node."""
        work, group = self._work, self._work.ranks_per_node
        if group == 1 or work.config.classifier.layout == "replicated":
            return 0.0
        seconds = 0.0
        for gather, rounds in zip(work.gathers, work.rounds, strict=True):
            # If a gather crosses nodes on cards, its whole ring already counts the steps inside.
            apart = not (self._cluster.on_cards and gather.cross_node)
            seconds += self.inside(gather.in_node, rounds * (group - 1) if apart else 0)
        return seconds

    def gathers(self) -> tuple[Transfer, ...]:
        """The blocking transfers of the slice group between nodes, in each micro-batch."""
        work = self._work
        return tuple(
            self._flat(gather, self._all_reduce() if rounds > 1 else self._gather())
            for gather, rounds in zip(work.gathers, work.rounds, strict=True)
            if gather.cross_node
        )

    def buckets(self) -> tuple[Launch, ...]:
        """The transfers that overlap with the last backward pass, in the order they are sent."""
        work, exchange = self._work, self._exchange
        if work.nodes == 1:
            return self._buckets_in_node()
        if exchange.traits.crosses is Crosses.FACTORS:
            start = POWER_SGD_COLLECTIVES * self._all_reduce()
            return (Launch(1.0, self._flat(work.window, start)),)
        if exchange.traits.crosses is Crosses.VALUES:
            return (Launch(1.0, self._flat(_across(work), self._all_reduce())),)
        peers = self._quickest(crossing_steps(work.nodes, self._lossy, self._cluster.on_cards))
        through = work.route == "hierarchical"
        return tuple(
            Launch(
                bucket.arrival,
                self._through_nodes(bucket.sent, peers)
                if through and not bucket.of_slice
                else self._flat(bucket.sent, peers if bucket.of_slice else self._all_reduce()),
            )
            for bucket in work.buckets
        )

    def _through_nodes(self, sent: Bytes, peers: float) -> Transfer:
        """A bucket by the hierarchical route: reduced in the node, averaged over nodes, gathered.

        A bucket's three stages follow each other, while other buckets are in other stages: so the
        latencies add up, but the slowest stage alone limits the rate.
        """
        cluster, steps = self._cluster, 2 * (self._work.ranks_per_node - 1)
        crossing = self._flat(sent, peers + steps * cluster.node.latency_seconds)
        if not cluster.on_cards:
            return crossing
        return replace(crossing, own=max(crossing.own, self.inside(sent.in_node, 0)))

    def _buckets_in_node(self) -> tuple[Launch, ...]:
        """The buckets of a single node.

        Cards average one bucket after the other during the backward pass. On cores, which that
        pass keeps busy, all buckets count as sent after it.
        """
        work, ranks = self._work, self._work.ranks_per_node
        if ranks == 1:
            return ()
        if not self._cluster.on_cards or self._exchange.is_torchs:
            sent = (work.window - work.gathered).in_node
            seconds = self.inside(sent, 2 * (ranks - 1))
            return (Launch(1.0, Transfer(start=seconds)),)
        return tuple(
            Launch(
                bucket.arrival,
                Transfer(own=self.inside(bucket.sent.in_node, 2 * (ranks - 1))),
            )
            for bucket in work.buckets
        )

    def exchange(self) -> Transfer:
        """The exchange after the backward pass, of all ranks of a node through its port."""
        work, cluster = self._work, self._cluster
        if not work.exchanged:
            return Transfer()
        if not self._by_horovod:  # through torch.distributed, and from card to card
            steps = crossing_steps(work.nodes, self._lossy, cluster.on_cards)
            start = work.messages * self._quickest(steps)
            return self._flat(Bytes(cross_node=work.exchanged), start)
        late, link = cluster.late, cluster.link
        step = link.step_seconds if late.step_seconds is None else late.step_seconds
        (turns,) = crossing_steps(work.nodes, self._lossy, on_cards=False)  # by Horovod
        thread = work.exchanged / (late.bytes_per_second or math.inf)
        return Transfer(
            start=work.messages * (late.start_seconds + turns.across * step) + self._copy(),
            wire=work.exchanged * work.ranks_per_node / link.bytes_per_second,
            own=max(thread, cluster.slowdown * late.cpu_seconds_per_byte * work.exchanged),
            burst=link.burst_seconds,
        )

    def disturbance(self) -> float:
        """Seconds per window that a late exchange takes from the ranks.

        Its thread runs on the ranks' cores if none is idle. On cards, the copy that brings the
        result back interrupts the card's own work.
        """
        cluster, sent = self._cluster, self._work.exchanged
        if not self._exchange.delay or not sent:
            return 0.0
        if not self._by_horovod:
            return self.exchange().taken
        if not cluster.cores_are_busy:
            return self._copy()
        late = cluster.late
        messages = self._work.messages * late.cpu_seconds
        return cluster.slowdown * (messages + late.cpu_seconds_per_byte * sent)

    def _copy(self) -> float:
        """Seconds of a copy between card and host memory, one way.

        A ring of M nodes sends 2 (M - 1) / M of a rank's buffer, so the buffer is sent / that.
        """
        rate, nodes = self._cluster.late.copy_bytes_per_second, self._work.nodes
        if rate is None:
            return 0.0
        return self._work.exchanged * nodes / (2 * (nodes - 1)) / rate

    def inside(self, sent: float, steps: int) -> float:
        """Seconds of a collective inside a node in which a rank sends `sent` bytes in `steps`."""
        node = self._cluster.node
        seconds = sent / node.bytes_per_second + steps * node.latency_seconds
        return self._cluster.slowdown * seconds

    def _gather(self) -> float:
        return self._quickest((gather_steps(*self._grid),))

    def _all_reduce(self) -> float:
        return self._quickest(all_reduce_steps(*self._grid))

    def _quickest(self, ways: tuple[CollectiveSteps, ...]) -> float:
        cluster = self._cluster
        return quickest(ways, cluster.link.step_seconds, cluster.node.latency_seconds)

    def _flat(self, sent: Bytes, start: float) -> Transfer:
        """A collective of all ranks; bytes sent inside nodes cost processor time as well."""
        cluster, link = self._cluster, self._cluster.link
        own = cluster.slowdown * link.cpu_seconds_per_byte * (sent.cross_node + sent.in_node)
        taken = own + cluster.slowdown * link.cpu_seconds
        return Transfer(
            start=start,
            wire=sent.cross_node * self._work.ranks_per_node / link.bytes_per_second,
            own=own,
            burst=link.burst_seconds,
            taken=taken if cluster.cores_are_busy else 0.0,
        )


def _across(work: Workload) -> Bytes:
    """Bytes that a rank sends in post-local SGD's average, which is a ring over all ranks."""
    per_node = work.ranks_per_node
    return Bytes(in_node=work.window.cross_node * (per_node - 1), cross_node=work.window.cross_node)
