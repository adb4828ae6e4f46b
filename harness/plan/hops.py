"""How many steps of a collective follow each other, and how long they take before its bytes do."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


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
