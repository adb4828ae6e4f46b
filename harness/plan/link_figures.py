"""Converts timings between nodes into the figures of a link and of late exchanges."""

from collections.abc import Sequence

from harness.calibrate.result import Calibration, Point
from harness.errors import UserError
from harness.plan.machines import Late, Link
from harness.plan.transfers import all_reduce_steps, step_seconds_of

SLOWER = 0.8
"""Fraction of the link's rate below which, between cores, something other than it is the limit."""
SAVED = 0.05
"""Fraction of a transfer that idling must save; below it a link is taken to have no burst."""


def between(found: Calibration, latency: float) -> dict[str, object]:
    """The figures of the network, which cannot be measured on a single node.

    `latency` is that of a step inside a node, s.
    """
    nodes, group, on_cards = found.nodes, found.ranks_per_node, found.cores_per_node is None
    if nodes == 1:
        return {"link": Link(bytes_per_second=1e9), "link_known": False}
    # In a ring all-reduce over N ranks, a rank sends 2 (N - 1) / N of its buffer.
    ring = 2 * (nodes * group - 1) / (nodes * group)
    of_link = [point.model_copy(update={"size": point.size * ring}) for point in found.flat]
    step = step_seconds_of(all_reduce_steps(nodes, group, on_cards), of_link[0].seconds, latency)
    steady, rested = found.flat[-1].seconds, found.flat_after_rest[-1].seconds
    saved = steady - rested
    cpu_rate = 0.0 if on_cards else _cpu_rate(of_link)
    for_each = 0.0 if on_cards else of_link[0].cpu_seconds - cpu_rate * of_link[0].size
    link = Link(
        bytes_per_second=rate(of_link),
        step_seconds=step,
        burst_seconds=saved + of_link[0].seconds if saved > SAVED * steady else 0.0,
        cpu_seconds=max(0.0, for_each),
        cpu_seconds_per_byte=cpu_rate,
    )
    return {"link": link, "late": _late(found, link)}


def _late(found: Calibration, link: Link) -> Late:
    """The figures of late exchanges.

    On cards no processor time is charged: the thread that waits for a card only spins, so what
    Horovod's thread uses is taken from nobody.
    """
    nodes = found.nodes
    start = max(0.0, found.peers[0].seconds - 2 * (nodes - 1) * link.step_seconds)
    if found.cores_per_node is None:
        return Late(
            start_seconds=start,
            bytes_per_second=_thread_rate(found),
            copy_bytes_per_second=rate(found.host_copy) if found.host_copy else None,
        )
    among_peers = 2 * (nodes - 1) / nodes
    sent = [
        point.model_copy(update={"size": point.size * among_peers}) for point in found.under_way
    ]
    cpu_rate = _cpu_rate(sent)
    for_one = sent[0].cpu_seconds - found.idle.cpu_seconds
    thread, of_link = _thread_rate(found), link.bytes_per_second / found.ranks_per_node
    return Late(
        start_seconds=start,
        cpu_seconds=max(0.0, for_one - cpu_rate * sent[0].size),
        cpu_seconds_per_byte=cpu_rate,
        bytes_per_second=thread if thread is not None and thread < SLOWER * of_link else None,
    )


def _thread_rate(found: Calibration) -> float | None:
    """Bytes/s that one rank's Horovod thread sends, without the copies from and to a card."""
    if len(found.peers) == 1:
        return None
    seconds = 1 / rate(found.peers)
    if found.host_copy:
        seconds -= 2 / rate(found.host_copy)
    return 2 * (found.nodes - 1) / found.nodes / seconds if seconds > 0 else None


def rate(points: Sequence[Point]) -> float:
    """Size per second between the two largest points, so that constant costs cancel out.

    Raises UserError for a single point, whose time may be any mixture of latency and rate.
    """
    if len(points) == 1:
        raise UserError(
            f"the calibration timed a transfer in one size only ({points[0].size:g} bytes), which "
            f"does not tell latency from rate; calibrate again with harness plan --hosts"
        )
    first, last = points[-2:]
    return (last.size - first.size) / max(1e-12, last.seconds - first.seconds)


def _cpu_rate(points: Sequence[Point]) -> float:
    """Processor seconds per unit of size, between the smallest and the largest point."""
    if len(points) == 1:
        return 0.0
    first, last = points[0], points[-1]
    return max(0.0, (last.cpu_seconds - first.cpu_seconds) / (last.size - first.size))
