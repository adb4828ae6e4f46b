"""What ranks send to each other in a window, on either route, and how long it is under way."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from harness.exchange.kinds import Crosses
from harness.measure.traffic import Bytes
from harness.plan.machines import Cluster
from harness.plan.workload import Workload

POWER_SGD_COLLECTIVES = 3
"""In turn: vectors as they are, then one factor, then the other."""


@dataclass(frozen=True)
class Hops:
    """One after the other, for the first byte to have been everywhere."""

    across: int
    """Between nodes."""
    inside: int = 0
    """Within one."""

    def __mul__(self, times: int) -> "Hops":
        return Hops(self.across * times, self.inside * times)

    def seconds(self, step: float, latency: float) -> float:
        """`step`: of a hop between nodes, `latency`: of one within a node."""
        return self.across * step + self.inside * latency

    def step(self, seconds: float, latency: float) -> float:
        """Of a hop between nodes, where all hops take so many seconds."""
        return max(0.0, seconds - self.inside * latency) / self.across


def of_gather(nodes: int, per_node: int, on_cards: bool) -> Hops:
    """Once round a ring of all ranks, which lie in order on nodes: a reduce-scatter's too.

    Between processes on cores every hop counts as one between nodes: what it takes is waking up.
    """
    ranks = nodes * per_node
    if not on_cards:
        return Hops(ranks - 1)
    across = 0 if nodes == 1 else min(nodes, ranks - 1)
    return Hops(across, ranks - 1 - across)


def of_all_reduce(nodes: int, per_node: int, on_cards: bool) -> tuple[Hops, ...]:
    """The ways that it can go: twice round the ring; on cards also up and down a tree of nodes, as
    NCCL does where there are many of them."""
    ring = of_gather(nodes, per_node, on_cards) * 2
    if not on_cards:
        return (ring,)
    return ring, Hops(math.ceil(math.log2(nodes)), per_node - 1) * 2


def of_crossing(nodes: int, lossy: bool, on_cards: bool) -> tuple[Hops, ...]:
    """Of a mean over one rank on each node: over a lossy wire two swap their parts in one step."""
    if lossy and nodes == 2:
        return (of_gather(nodes, 1, on_cards),)
    return of_all_reduce(nodes, 1, on_cards)


def quickest(ways: Sequence[Hops], step: float, latency: float) -> float:
    """Seconds."""
    return min(way.seconds(step, latency) for way in ways)


def step_of(ways: Sequence[Hops], seconds: float, latency: float) -> float:
    """The `step` for which `quickest` takes so many seconds."""
    return max(way.step(seconds, latency) for way in ways)


@dataclass(frozen=True)
class Transfer:
    """What all ranks of a node have under way at the same time, through its port."""

    start: float = 0.0
    """Seconds until bytes move."""
    wire: float = 0.0
    """Seconds of the port, at its lasting rate."""
    own: float = 0.0
    """Seconds that a rank's thread needs for it at least."""
    burst: float = 0.0
    """Of `wire`, what a port that has rested takes at once."""
    taken: float = 0.0
    """Seconds of the ranks' compute that its threads take, where no core is idle."""

    @property
    def seconds(self) -> float:
        """Through a port that has rested, nothing else under way."""
        return self.start + max(self.wire - min(self.burst, self.wire), self.own)


@dataclass(frozen=True)
class Launch:
    """A transfer that starts during the last backward pass."""

    arrival: float
    """When, as a share of the backbone's backward pass."""
    transfer: Transfer


class Transfers:
    """Of one window."""

    def __init__(self, cluster: Cluster, work: Workload) -> None:
        self._cluster = cluster
        self._work = work
        self._exchange = work.config.exchange
        self._lossy = work.config.exchange.compression != "none"
        self._grid = work.nodes, work.ranks_per_node, cluster.on_cards

    def slice_wait(self) -> float:
        """Inside the node, of each micro-batch."""
        work, group = self._work, self._work.ranks_per_node
        if group == 1 or work.config.classifier.layout == "replicated":
            return 0.0
        seconds = 0.0
        for gather, rounds in zip(work.gathers, work.rounds, strict=True):
            # A card's hops inside nodes are among those of the whole ring.
            apart = not (self._cluster.on_cards and gather.cross_node)
            seconds += self.inside(gather.in_node, rounds * (group - 1) if apart else 0)
        return seconds

    def gathers(self) -> tuple[Transfer, ...]:
        """Between nodes, blocking, of each micro-batch."""
        work = self._work
        return tuple(
            self._flat(gather, self._all_reduce() if rounds > 1 else self._gather())
            for gather, rounds in zip(work.gathers, work.rounds, strict=True)
            if gather.cross_node
        )

    def buckets(self) -> tuple[Launch, ...]:
        """Flat all-reduces, each its share of the bytes."""
        work, exchange = self._work, self._exchange
        if work.nodes == 1:
            return self._buckets_in_node()
        if exchange.traits.crosses is Crosses.FACTORS:
            start = POWER_SGD_COLLECTIVES * self._all_reduce()
            return (Launch(1.0, self._flat(work.window, start)),)
        if exchange.traits.crosses is Crosses.VALUES:
            return (Launch(1.0, self._flat(_across(work), self._all_reduce())),)
        peers = self._quickest(of_crossing(work.nodes, self._lossy, self._cluster.on_cards))
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
        """Added up in the node, averaged over nodes, spread in the node: a bucket's stops follow
        each other, while other buckets are at the others."""
        cluster, steps = self._cluster, 2 * (self._work.ranks_per_node - 1)
        crossing = self._flat(sent, peers + steps * cluster.node.latency_seconds)
        if not cluster.on_cards:
            return crossing
        return replace(crossing, own=max(crossing.own, self.inside(sent.in_node, 0)))

    def _buckets_in_node(self) -> tuple[Launch, ...]:
        """Cards average one bucket after the other beside the backward pass; on cores, which that
        keeps busy, all of them are as good as after it."""
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
        """All peers of a node at once: one rank's bytes by so many ranks through one port."""
        work, cluster = self._work, self._cluster
        if not work.exchanged:
            return Transfer()
        late, link = cluster.late, cluster.link
        step = link.step_seconds if late.step_seconds is None else late.step_seconds
        (turns,) = of_crossing(work.nodes, self._lossy, on_cards=False)  # by Horovod
        waits = self._exchange.delay == 0
        cpu = link.cpu_seconds_per_byte if waits else late.cpu_seconds_per_byte
        thread = work.exchanged / (late.bytes_per_second or math.inf)
        # Out of the card, and where it is waited for back.
        copies = (2 if waits else 1) * self._copy()
        return Transfer(
            start=late.start_seconds + turns.across * step + copies,
            wire=work.exchanged * work.ranks_per_node / link.bytes_per_second,
            own=max(thread, cluster.slowdown * cpu * work.exchanged),
            burst=link.burst_seconds,
        )

    def disturbance(self) -> float:
        """Its thread works on the ranks' cores where none is idle; what lands in a card's memory is
        copied there between the card's own work."""
        cluster, sent = self._cluster, self._work.exchanged
        if not self._exchange.delay or not sent:
            return 0.0
        if not cluster.cores_are_busy:
            return self._copy()
        late = cluster.late
        return cluster.slowdown * (late.cpu_seconds + late.cpu_seconds_per_byte * sent)

    def _copy(self) -> float:
        """Between a card and host memory, one way: of a ring's bytes each rank's own buffer."""
        rate, nodes = self._cluster.late.copy_bytes_per_second, self._work.nodes
        if rate is None:
            return 0.0
        return self._work.exchanged * nodes / (2 * (nodes - 1)) / rate

    def inside(self, sent: float, steps: int) -> float:
        node = self._cluster.node
        seconds = sent / node.bytes_per_second + steps * node.latency_seconds
        return self._cluster.slowdown * seconds

    def _gather(self) -> float:
        return self._quickest((of_gather(*self._grid),))

    def _all_reduce(self) -> float:
        return self._quickest(of_all_reduce(*self._grid))

    def _quickest(self, ways: tuple[Hops, ...]) -> float:
        cluster = self._cluster
        return quickest(ways, cluster.link.step_seconds, cluster.node.latency_seconds)

    def _flat(self, sent: Bytes, start: float) -> Transfer:
        """Of all ranks; what it sends inside nodes costs their processors too."""
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
    """Of post-local SGD's average over all ranks: what a ring of them sends across, and inside."""
    per_node = work.ranks_per_node
    return Bytes(in_node=work.window.cross_node * (per_node - 1), cross_node=work.window.cross_node)
