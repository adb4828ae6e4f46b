"""What is measured of the way between two ranks, and which ways are measured."""

from collections.abc import Sequence
from itertools import combinations

from harness.doctor.finding import Facts, in_bytes
from harness.doctor.names import hosts_of
from harness.doctor.seat import Seat


class Link(Facts):
    """What one rank measured of the way to another."""

    source: int
    target: int
    latency_seconds: float = 0.0
    """Half the shortest round trip."""
    there: float = 0.0
    """Bytes per second, source to target."""
    back: float = 0.0
    clock_ahead_seconds: float = 0.0
    """Of the target's clock before the source's."""
    error: str = ""
    """Why there is nothing else to tell."""


def pairs_between(seats: Sequence[Seat]) -> list[tuple[int, int]]:
    """Each two hosts once, by the ranks that speak for them; those of the first host first."""
    speakers = [next(s.rank for s in seats if s.host == host) for host in hosts_of(seats)]
    return list(combinations(speakers, 2))


def pairs_within(seats: Sequence[Seat]) -> list[tuple[int, int]]:
    """The first and the last rank of each host that has two."""
    ranks = [[s.rank for s in seats if s.host == host] for host in hosts_of(seats)]
    return [(own[0], own[-1]) for own in ranks if len(own) > 1]


def better(first: Link, second: Link) -> Link:
    """The better figures of two measurements: a disturbance only ever takes away."""
    if first.error or second.error:
        return second if first.error else first
    return first.model_copy(
        update={
            "latency_seconds": min(first.latency_seconds, second.latency_seconds),
            "there": max(first.there, second.there),
            "back": max(first.back, second.back),
        }
    )


def figures_of(links: Sequence[Link]) -> str:
    good = [link for link in links if not link.error]
    if not good:
        return "nothing could be measured"
    rates = [rate for link in good for rate in (link.there, link.back)]
    late = [link.latency_seconds * 1e3 for link in good]
    return (
        f"{len(links)} pairs, {in_speed(min(rates))} to {in_speed(max(rates))}, "
        f"latency {min(late):.2f} to {max(late):.2f} ms"
    )


def because(link: Link) -> str:
    return f" ({link.error})" if link.error else ""


def in_speed(bytes_per_second: float) -> str:
    return f"{in_bytes(bytes_per_second)}/s"
