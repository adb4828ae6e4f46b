"""Simulates windows on many nodes that vary, with events in place of the cost model's formulas.

A node is one process. This is exact: its ranks meet either in every micro-batch, or not before the
nodes do, so the latest rank determines the node. Nodes differ by jitter and by stalls. Every node
sends the same bytes through its own port, and an exchange begins when the last node arrives, so one
port represents all. Without jitter and stalls, a window takes what the cost model predicts.
"""

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import simpy

from harness.errors import UserError
from harness.plan.cost_model import Port
from harness.plan.machines import Cluster, Stalls
from harness.plan.step_times import Pieces, pieces_of
from harness.plan.transfers import Transfer
from harness.plan.workload import Workload

Steps = Generator[simpy.Event, Any, None]
"""What a simpy process yields."""


@dataclass(frozen=True)
class Simulation:
    """Times of the second half of the windows; in the first half, pipelines fill."""

    step_seconds: float
    """Seconds per window, mean over windows and nodes."""
    wait_seconds: float
    """Seconds per window in which a node waited for others, in exchanges and gathers; mean."""
    slowest_seconds: float
    """Seconds of the longest window of any node."""


def simulate(cluster: Cluster, work: Workload, windows: int = 20, seed: int = 0) -> Simulation:
    """Simulates windows of ranks whose micro-batches vary by `cluster.jitter` of their mean.

    Raises UserError for fewer windows than two rounds of exchanges.
    """
    pieces = pieces_of(cluster, work)
    period = max(1, pieces.delay + (not pieces.lands_first))
    if windows < 2 * period:
        raise UserError(
            f"{windows} {'window is' if windows == 1 else 'windows are'} too few to simulate "
            f"{work.config.name}: the first half of them fills pipelines, and a round of "
            f"exchange.delay={pieces.delay} takes {period}; give {2 * period} or more"
        )
    draw = _Draw(pieces, work, np.random.default_rng(seed))
    environment = simpy.Environment()
    network = _Network(environment, pieces, work.nodes)
    schedule = np.random.default_rng([seed, 1])
    nodes = [
        _Node(environment, network, pieces, draw, _Speed.of(cluster.stalls, number, schedule))
        for number in range(work.nodes)
    ]
    for node in nodes:
        environment.process(node.run(windows))
    environment.run()
    return _steady(nodes, windows, period)


def _steady(nodes: list["_Node"], windows: int, period: int) -> Simulation:
    """Averages over whole periods of exchanges.

    If a late exchange is the bottleneck, the windows of a period take turns in waiting for it, so
    a partial period would be biased.
    """
    counted = windows // 2 // period * period
    first = windows - counted
    ends = np.array([[0.0, *node.ends] for node in nodes])
    waits = np.array([node.waits for node in nodes])
    return Simulation(
        step_seconds=float((ends[:, -1] - ends[:, first]).mean() / counted),
        wait_seconds=float(waits[:, first:].mean()),
        slowest_seconds=float(np.diff(ends)[:, first:].max()),
    )


class _Draw:
    """Draws how long a node's micro-batches take: its slowest rank's time, or its cores'."""

    def __init__(self, pieces: Pieces, work: Workload, generator: np.random.Generator) -> None:
        self._pieces = pieces
        self._shape = (pieces.passes, work.ranks_per_node)
        self._generator = generator
        sliced = work.config.classifier.layout != "replicated"
        self._meets = sliced or pieces.steps == pieces.passes

    def window(self) -> list[float]:
        """Seconds of compute of each micro-batch in a window."""
        pieces = self._pieces
        if not pieces.jitter:
            return [pieces.compute] * pieces.passes
        drawn = self._generator.standard_normal(self._shape)
        times = np.maximum(0.0, 1 + pieces.jitter * drawn) * pieces.compute
        # Ranks on shared cores slow each other down and end together, at their mean. Ranks that
        # meet in every micro-batch take the maximum of each: sum_k max_r t. Others meet only at the
        # end of the window, so the rank with the largest sum counts: max_r sum_k t.
        if pieces.shares_cores:
            return [float(mean) for mean in times.mean(axis=1)]
        if self._meets:
            return [float(longest) for longest in times.max(axis=1)]
        latest = int(times.sum(axis=0).argmax())
        return [float(each) for each in times[:, latest]]


@dataclass(frozen=True)
class _Speed:
    """A node's speed over time: periodic stalls that start at a random moment of each node."""

    stalls: Stalls | None
    first: float = 0.0
    """Start of a stall, s; stalls repeat with their period before and after it."""

    @classmethod
    def of(cls, stalls: Stalls | None, number: int, generator: np.random.Generator) -> "_Speed":
        if stalls is None or number >= stalls.nodes:
            return cls(None)
        return cls(stalls, generator.uniform(0, stalls.every_seconds))

    def ends(self, start: float, work: float) -> float:
        """The time at which `work` seconds of undisturbed work that begin at `start` are done."""
        if self.stalls is None or work <= 0:
            return start + work
        every, slow, speed = self.stalls.every_seconds, self.stalls.for_seconds, self.stalls.speed
        now = start
        while True:
            phase = (now - self.first) % every
            stalled = phase < slow
            rate, left = (speed, slow - phase) if stalled else (1.0, every - phase)
            if rate * left >= work:
                return now + work / rate
            work -= rate * left
            # Rounding may make `left` too small to advance `now`; then the loop would never end.
            now = max(now + left, math.nextafter(now, math.inf))


class _Network:
    """The exchanges in their order, and the port that they share.

    Flows share a port: a blocking transfer does not queue behind a late exchange, but delays it by
    the time of its bytes. So `_port` sees blocking transfers only, and `_behind` sees all.
    """

    def __init__(self, environment: simpy.Environment, pieces: Pieces, nodes: int) -> None:
        self._environment = environment
        self._nodes = nodes
        self._port, self._behind = Port(), Port()
        self._exchanges: dict[tuple[object, ...], _Exchange] = {}
        self.pieces = pieces

    def arrive(
        self, name: tuple[object, ...], transfer: Transfer, late: bool = False
    ) -> simpy.Event:
        """Registers a node's arrival at the exchange `name`; the returned event is its end."""
        if name not in self._exchanges:
            self._exchanges[name] = _Exchange(self._nodes, self._environment.event())
        exchange = self._exchanges[name]
        exchange.missing -= 1
        if not exchange.missing:
            self._environment.process(self._carry(exchange, transfer, late))
            del self._exchanges[name]
        return exchange.ended

    def _carry(self, exchange: "_Exchange", transfer: Transfer, late: bool) -> Steps:
        yield self._environment.timeout(transfer.start)
        now = self._environment.now
        end = self._behind.sent(now, transfer.wire, transfer.own, transfer.burst)
        if not late:
            end = self._port.sent(now, transfer.wire, transfer.own, transfer.burst)
        yield self._environment.timeout(end - now)
        exchange.ended.succeed()


@dataclass
class _Exchange:
    missing: int
    """Nodes that have not arrived yet."""
    ended: simpy.Event


class _Node:
    """All ranks of a node."""

    def __init__(
        self,
        environment: simpy.Environment,
        network: _Network,
        pieces: Pieces,
        draw: _Draw,
        speed: _Speed,
    ) -> None:
        self._environment = environment
        self._network = network
        self._pieces = pieces
        self._draw = draw
        self._speed = speed
        self._under_way: list[simpy.Event] = []
        self.ends: list[float] = []
        """Times at which windows ended."""
        self.waits: list[float] = []
        """Seconds waited in each window."""

    def run(self, windows: int) -> Steps:
        for window in range(windows):
            self.waits.append(0.0)
            yield from self._window(window)
            self.ends.append(self._environment.now)

    def _window(self, window: int) -> Steps:
        pieces = self._pieces
        times = self._draw.window()
        for number, seconds in enumerate(times):
            last = number == len(times) - 1
            for step, gather in enumerate(pieces.gathers):
                name = ("gather", window, number, step)
                yield from self._wait(self._network.arrive(name, gather))
            if last and pieces.buckets:
                yield from self._with_buckets(window, seconds + pieces.slice_wait)
            else:
                yield from self._work(seconds + pieces.slice_wait)
            if last or pieces.steps == pieces.passes:
                yield from self._work(pieces.node + pieces.optimizer)
        yield from self._work(pieces.encode + pieces.disturbance)
        if pieces.exchange.seconds > 0:
            yield from self._exchange(window)

    def _exchange(self, window: int) -> Steps:
        pieces = self._pieces
        if pieces.lands_first and pieces.delay and len(self._under_way) == pieces.delay:
            yield from self._wait(self._under_way.pop(0))
        late = pieces.delay > 0
        self._under_way.append(self._network.arrive(("exchange", window), pieces.exchange, late))
        if len(self._under_way) > pieces.delay:
            yield from self._wait(self._under_way.pop(0))

    def _with_buckets(self, window: int, seconds: float) -> Steps:
        """Runs the last micro-batch, which ends no earlier than its last bucket."""
        pieces = self._pieces
        overlapped = min(seconds, pieces.backbone_backward)
        yield from self._work(seconds - overlapped)
        buckets, taken = [], 0.0
        for number, launch in enumerate(pieces.buckets):
            arrives = launch.arrival * overlapped + taken
            buckets.append(self._environment.process(self._bucket(window, number, arrives)))
            taken += launch.transfer.taken
        yield from self._work(overlapped + pieces.stretch)
        yield from self._wait(self._environment.all_of(buckets))

    def _bucket(self, window: int, number: int, arrives: float) -> Steps:
        """Sends one bucket, whose gradients are ready after `arrives` seconds of work."""
        yield from self._until(self._speed.ends(self._environment.now, arrives))
        transfer = self._pieces.buckets[number].transfer
        yield self._network.arrive(("bucket", window, number), transfer)

    def _until(self, moment: float) -> Steps:
        yield self._environment.timeout(max(0.0, moment - self._environment.now))

    def _work(self, seconds: float) -> Steps:
        yield from self._until(self._speed.ends(self._environment.now, seconds))

    def _wait(self, event: simpy.Event) -> Steps:
        began = self._environment.now
        yield event
        self.waits[-1] += self._environment.now - began
