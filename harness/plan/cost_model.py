"""Predicts the time of a window on a cluster from the pieces that make it up.

Seconds: m is a micro-batch, of which a window has K; a is what follows a step (inside the node, and
the optimizer); e is packing. An exchange starts after s, occupies a node's port for w and each
rank's thread for c; b is what a port that has rested sends at once. Then a window takes T:

    synchronous                 buckets are sent one after the other, once their gradients are ready
                                end_i = max(end_(i-1), ready_i + s) + max(w_i - b_i, c_i),
                                T = max(K m, end_n) + a + e
                                on busy cores, gradients are ready later by the processor time that
                                the buckets before them took
    delay d                     C = K m + a + e + c'       c': time that threads take from the cores
                                T = max(C, w, c, (C + s + max(w - b, c)) / (d + 1))
    averaging, delay d          T = max(C, w, c, (s + max(w - b, c)) / d)  lands before it launches
    isolated                    T = K m + a
    averaging, isolated         a follows each of the K micro-batches

T is never below the sum of all w, the capacity of a port. So a delay hides at most the compute: its
speed-up is <= (T_compute + T_transfer) / max of the two. `world` adds its gathers, which block, to
each m. The steps of rings and trees in s are counted in harness/plan/transfers.py.

Ranks that vary wait for the slowest at each meeting: e(n) standard deviations, where e(n) is the
mean of the largest of n normal values. A node's ranks meet in every micro-batch if they share
anything but the machine; nodes meet in a window if they wait for an exchange. Ranks that share
cores do not wait for each other, because a core does the same work in any order. Over K
micro-batches, variances add up. Waits of late exchanges for late nodes are left to the simulator.
"""

import math
from functools import cache

import numpy as np
from scipy import stats

from harness.config import Config
from harness.exchange.pieces import PieceTimes, late_window
from harness.measure.phase import Phase
from harness.plan.machines import Cluster
from harness.plan.step_times import Pieces, pieces_of
from harness.plan.workload import Workload, workload_of
from harness.tracking.prediction import Prediction


def predict(
    cluster: Cluster, config: Config, nodes: int | None = None, ranks_per_node: int | None = None
) -> Prediction:
    """Predicts one experiment on the cluster, or on a different number of its machines.

    Raises UserError for a config that these ranks cannot run.
    """
    where = nodes or cluster.nodes, ranks_per_node or cluster.ranks_per_node
    work = workload_of(with_chosen_pieces(cluster, config, *where), *where, cluster.on_cards)
    return _prediction(cluster, work, phases(pieces_of(cluster, work), work))


def with_chosen_pieces(cluster: Cluster, config: Config, nodes: int, ranks_per_node: int) -> Config:
    """The config with `exchange.pieces` chosen by a run's rule, if the config leaves it open."""
    exchange = config.exchange
    if not exchange.max_pieces:
        return config
    whole = config.exchanging(pieces=1, max_pieces=0)
    work = workload_of(whole, nodes, ranks_per_node, cluster.on_cards)
    pieces = pieces_of(cluster, work)
    compute = pieces.passes * (pieces.micro_batch + pieces.after)
    transfer_ms = pieces.exchange.seconds * 1e3
    # A slice with a pace of its own is not cut any further.
    cut = 1.0 if exchange.slice_pieces is None else work.shared / ranks_per_node / work.part
    times = PieceTimes(compute * 1e3, cut * transfer_ms, (1 - cut) * transfer_ms)
    picked = times.fewest_pieces(exchange.delay, exchange.max_pieces)
    return config.exchanging(pieces=picked, max_pieces=0)


def _prediction(cluster: Cluster, work: Workload, phases: dict[Phase, float]) -> Prediction:
    """`phases` are in seconds of a window."""
    step = sum(phases.values())
    return Prediction(
        variant=work.config.name,
        nodes=work.nodes,
        ranks_per_node=work.ranks_per_node,
        step_ms=step * 1e3,
        phases_ms={phase.value: seconds * 1e3 for phase, seconds in phases.items()},
        images_per_second=work.images / step,
        cross_node_mb_per_step=work.window.cross_node * work.ranks_per_node / 1e6,
        in_node_mb_per_step=work.window.in_node / 1e6,
        memory_mb=work.need.where_it_trains(cluster.on_cards) / 1e6,
    )


def phases(pieces: Pieces, work: Workload) -> dict[Phase, float]:
    """Seconds of a window by phase: what a rank does or waits for."""
    passes = pieces.passes
    found = {
        Phase.DATA: passes * pieces.data,
        Phase.FORWARD: passes * pieces.forward,
        Phase.BACKWARD: passes * pieces.backward + pieces.stretch,
        Phase.SLICE_WAIT: passes * (pieces.micro_batch - pieces.compute),
        Phase.NODE_WAIT: pieces.steps * pieces.node,
        Phase.OPTIMIZER: pieces.steps * pieces.optimizer,
        Phase.OTHER: passes * pieces.overhead + pieces.encode + pieces.disturbance,
    }
    meetings = _Meetings(pieces, work)
    found[Phase.NODE_WAIT] += passes * meetings.in_node
    busy = sum(found.values())
    found[Phase.EXCHANGE_WAIT] = exposed(pieces, busy)
    if blocks(pieces):
        found[Phase.EXCHANGE_WAIT] += meetings.between_nodes
    return {phase: found[phase] for phase in Phase}


def blocks(pieces: Pieces) -> bool:
    """Whether nodes wait for each other in every window."""
    meet = bool(pieces.buckets) or pieces.exchange.seconds > 0
    return (meet and pieces.delay == 0) or bool(pieces.gathers)


def exposed(pieces: Pieces, busy: float) -> float:
    """Seconds of a window in which ranks wait for an exchange.

    `busy` are the window's other seconds.
    """
    exchange = pieces.exchange
    wire = exchange.wire + sum(each.transfer.wire for each in pieces.buckets)
    wire += pieces.passes * sum(each.wire for each in pieces.gathers)
    if pieces.delay:
        least = max(wire, exchange.own)
        window = late_window(busy, exchange.seconds, least, pieces.delay, pieces.lands_first)
    else:
        window = max(busy + exchange.seconds + _past_backward(pieces), wire)
    return window - busy


def _past_backward(pieces: Pieces) -> float:
    """Seconds from the end of the backward pass until the last bucket has been sent."""
    # Time 0 is the end of the backward pass; a bucket's gradients are ready before it.
    port, end, taken = Port(), 0.0, 0.0
    for launch in pieces.buckets:
        transfer = launch.transfer
        arrived = (launch.arrival - 1) * pieces.backbone_backward + taken - pieces.stretch
        begun = arrived + transfer.start
        end = max(end, port.sent(begun, transfer.wire, transfer.own, transfer.burst))
        taken += transfer.taken
    return end


class Port:
    """A node's network port: a token bucket with a lasting rate and a burst saved up while idle.

    The threads that send handle one transfer after the other.
    """

    def __init__(self) -> None:
        self._free = self._threads_free = -math.inf

    def sent(self, at: float, wire: float, own: float, burst: float) -> float:
        """Returns the time at which a transfer that begins at `at` is complete.

        `wire`, `own` and `burst` are as in `Transfer`. The port is free at most `burst` seconds in
        the past, so that idling longer saves up no more.
        """
        self._free = max(self._free, at - burst) + wire
        self._threads_free = max(self._threads_free, at) + own
        return max(self._threads_free, self._free)


class _Meetings:
    """Mean seconds that ranks wait for each other because their speeds vary.

    `in_node` is per micro-batch, `between_nodes` per window.
    """

    def __init__(self, pieces: Pieces, work: Workload) -> None:
        deviation = pieces.jitter * pieces.compute
        group, nodes, layout = work.ranks_per_node, work.nodes, work.config.classifier.layout
        together = not work.overlaps or layout != "replicated"
        if pieces.shares_cores:
            # Ranks on shared cores end together, at their mean, which varies by sigma / sqrt(n).
            self.in_node = 0.0
            of_node = deviation / math.sqrt(group)
            self.between_nodes = self._over(nodes, of_node, pieces.passes)
            return
        if layout == "world":
            self.in_node = largest_normal(nodes * group)[0] * deviation
            self.between_nodes = 0.0
            return
        if together:
            mean, spread = largest_normal(group)
            in_every_pass = layout == "node" or pieces.steps == pieces.passes
            share = 1.0 if in_every_pass else 1 / math.sqrt(pieces.passes)
            self.in_node = mean * deviation * share
            self.between_nodes = self._over(nodes, spread * deviation, pieces.passes)
            return
        self.in_node = 0.0
        self.between_nodes = self._over(nodes * group, deviation, pieces.passes)

    @staticmethod
    def _over(parties: int, deviation: float, passes: int) -> float:
        return largest_normal(parties)[0] * deviation * math.sqrt(passes)


@cache
def largest_normal(n: int) -> tuple[float, float]:
    """Mean and standard deviation of the largest of n independent standard normal values."""
    # The largest has the distribution function Phi(x)^n, so its density is n Phi^(n-1) phi.
    x = np.linspace(-10.0, 10.0, 20_001)
    density = n * stats.norm.cdf(x) ** (n - 1) * stats.norm.pdf(x)
    mean = float(np.trapezoid(x * density, x))
    return mean, math.sqrt(max(0.0, float(np.trapezoid((x - mean) ** 2 * density, x))))
