"""Is every link as fast as the others, between hosts and inside them, and do the clocks agree?"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import median

from harness.doctor.finding import Facts, Finding, format_bytes, limit_lines, median_of_rest
from harness.doctor.names import hosts_of, machines_of
from harness.doctor.seat import Seat

BETWEEN, INSIDE, CLOCKS = "links", "in-host", "clocks"
"""Names of these checks."""
SLOW = 0.5
"""Share of the others' median rate below which a link, or the inside of a host, is slow."""
LATE = 3.0
"""Multiple of the others' median latency above which a host is late,"""
LATE_SECONDS = 0.001
"""if its latency is also longer by at least this much."""
TOLERATED_SECONDS = 0.1
"""Difference between clocks that is tolerated."""


class Link(Facts):
    """What one rank measured of its connection to another rank."""

    source: int
    target: int
    latency_seconds: float = 0.0
    """Half the shortest round trip."""
    there: float = 0.0
    """Bytes per second from source to target."""
    back: float = 0.0
    """Bytes per second from target to source."""
    clock_ahead_seconds: float = 0.0
    """How far the target's clock is ahead of the source's."""
    error: str = ""
    """Why nothing could be measured; empty if it could."""


def pairs_between(seats: Sequence[Seat]) -> list[tuple[int, int]]:
    """Every pair of hosts once, as the pair of their first ranks; pairs of the first host first."""
    leaders = [next(s.rank for s in seats if s.host == host) for host in hosts_of(seats)]
    return list(combinations(leaders, 2))


def pairs_within(seats: Sequence[Seat]) -> list[tuple[int, int]]:
    """The first and the last rank of each host that has at least two."""
    ranks = [[s.rank for s in seats if s.host == host] for host in hosts_of(seats)]
    return [(own[0], own[-1]) for own in ranks if len(own) > 1]


def slow_pairs(seats: Sequence[Seat], links: Sequence[Link]) -> set[tuple[int, int]]:
    """Pairs (source, target) of links that look slow and are measured again before being judged."""
    hosts = set(_slow_hosts(seats, links))
    rates = [rate for link in links for rate in (link.there, link.back)]
    usual = median(rates) if rates else 0.0
    return {
        (link.source, link.target)
        for link in links
        if hosts & {seats[link.source].host, seats[link.target].host}
        or min(link.there, link.back) < SLOW * usual
    }


def judge_between(seats: Sequence[Seat], links: Sequence[Link]) -> list[Finding]:
    """Judges the links of `pairs_between`.

    A host with all its links slow is one fault; links between other hosts are judged one by one.
    """
    if not links:
        return [Finding(check=BETWEEN, level="ok", found="one host, so no links between hosts")]
    figures = figures_of(links)
    if len(machines_of(seats)) == 1:
        figures = f"hosts are emulated on this machine: {figures}, not judged"
        return [Finding(check=BETWEEN, level="ok", found=figures)]
    slow = _slow_hosts(seats, links)
    faults = [_slow_host(host, seats, links) for host in slow]
    rest = [
        link for link in links if not {seats[link.source].host, seats[link.target].host} & set(slow)
    ]
    faults += _slow_links(seats, rest) + _late_hosts(seats, links)
    known = "" if len(links) > 1 else "; a single link, so nothing to compare it with"
    return limit_lines(faults, Finding(check=BETWEEN, level="ok", found=figures + known))


def _best(seats: Sequence[Seat], links: Sequence[Link]) -> dict[str, tuple[float, float]]:
    """Each host's fastest rate out and in, bytes per second.

    A host is slow if all its links are. A link to one slow host does not make the other end slow.
    """
    best = dict.fromkeys(hosts_of(seats), (0.0, 0.0))
    for link in links:
        source, target = seats[link.source].host, seats[link.target].host
        for host, out, into in ((source, link.there, link.back), (target, link.back, link.there)):
            best[host] = max(best[host][0], out), max(best[host][1], into)
    return best


def _slow_hosts(seats: Sequence[Seat], links: Sequence[Link]) -> list[str]:
    """Hosts whose best rate is low; of two hosts none, as either end of their link may be slow."""
    best = _best(seats, links)
    if len(best) < 3:
        return []
    return [
        host
        for number, host in enumerate(best)
        if any(
            rates[number] < SLOW * median_of_rest(rates, number)
            for rates in ([out for out, _ in best.values()], [into for _, into in best.values()])
        )
    ]


def _slow_host(host: str, seats: Sequence[Seat], links: Sequence[Link]) -> Finding:
    best = _best(seats, links)
    number = list(best).index(host)
    out, into = best[host]
    usual_out = median_of_rest([each for each, _ in best.values()], number)
    usual_in = median_of_rest([each for _, each in best.values()], number)
    errors = [e.error for e in links if e.error and host in _ends(seats, e)]
    return Finding(
        check=BETWEEN,
        level="fail",
        found=f"the link of {host}: {format_speed(out)} out and {format_speed(into)} in; the other "
        f"hosts' median is {format_speed(usual_out)} and {format_speed(usual_in)}"
        + (f" ({errors[0]})" if errors else ""),
        advice=f"check the cable, the port and the negotiated speed of {host}, and its load",
    )


def _slow_links(seats: Sequence[Seat], links: Sequence[Link]) -> list[Finding]:
    """Faults of links that fail, or are slow in a direction, though both hosts have fast links."""
    faults = []
    ways = []
    for link in links:
        source, target = _ends(seats, link)
        if link.error:
            faults.append(_fault(source, target, f"no connection{because(link)}"))
        else:
            ways += [(source, target, link.there), (target, source, link.back)]
    rates = [rate for _, _, rate in ways]
    for number, (source, target, rate) in enumerate(ways):
        others = median_of_rest(rates, number)
        if rate < SLOW * others:
            faults.append(
                _fault(source, target, f"{format_speed(rate)}; elsewhere {format_speed(others)}")
            )
    return faults


def _fault(source: str, target: str, found: str) -> Finding:
    return Finding(
        check=BETWEEN,
        level="fail",
        found=f"from {source} to {target}: {found}",
        advice=f"check the network between {source} and {target}",
    )


def _late_hosts(seats: Sequence[Seat], links: Sequence[Link]) -> list[Finding]:
    """Warnings about hosts whose shortest latency is long compared with the other hosts'."""
    shortest: dict[str, float] = {}
    for link in links:
        if not link.error:
            for host in _ends(seats, link):
                known = shortest.get(host, link.latency_seconds)
                shortest[host] = min(known, link.latency_seconds)
    return [
        Finding(
            check=BETWEEN,
            level="warn",
            found=f"{host} answers after {latency * 1e3:.2f} ms; the other hosts' median is "
            f"{usual * 1e3:.2f} ms",
            advice=f"check the network path to {host}, and its load",
        )
        for host, latency, usual in _with_usual(shortest)
        if latency > max(LATE * usual, usual + LATE_SECONDS)
    ]


def _with_usual(values: Mapping[str, float]) -> list[tuple[str, float, float]]:
    """(host, value, median of the others' values); empty for fewer than three hosts."""
    if len(values) < 3:
        return []
    numbers = list(values.values())
    return [
        (host, value, median_of_rest(numbers, number))
        for number, (host, value) in enumerate(values.items())
    ]


def _ends(seats: Sequence[Seat], link: Link) -> tuple[str, str]:
    return seats[link.source].host, seats[link.target].host


def better(first: Link, second: Link) -> Link:
    """The better values of two measurements: disturbances only make a link slower."""
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
    """Range of rates and latencies, for users."""
    good = [link for link in links if not link.error]
    if not good:
        return "nothing could be measured"
    rates = [rate for link in good for rate in (link.there, link.back)]
    late = [link.latency_seconds * 1e3 for link in good]
    return (
        f"{len(links)} pairs, {format_speed(min(rates))} to {format_speed(max(rates))}, "
        f"latency {min(late):.2f} to {max(late):.2f} ms"
    )


def because(link: Link) -> str:
    return f" ({link.error})" if link.error else ""


def format_speed(bytes_per_second: float) -> str:
    return f"{format_bytes(bytes_per_second)}/s"


def judge_within(seats: Sequence[Seat], links: Sequence[Link]) -> list[Finding]:
    """Judges the links of `pairs_within`; warnings only: cards of a host have their own links."""
    if not links:
        return [
            Finding(check=INSIDE, level="ok", found="one rank on each host, so no links inside")
        ]
    rates = [min(link.there, link.back) for link in links]
    faults = [
        Finding(
            check=INSIDE,
            level="warn",
            found=f"inside {seats[link.source].host}: {format_speed(rates[number])}; the other "
            f"hosts' median is {format_speed(median_of_rest(rates, number))}" + because(link),
            advice=f"check {seats[link.source].host} for other load",
        )
        for number, link in enumerate(links)
        if min(len(machines_of(seats)), len(links)) > 1
        and rates[number] < SLOW * median_of_rest(rates, number)
    ]
    return limit_lines(faults, Finding(check=INSIDE, level="ok", found=figures_of(links)))


def judge_clocks(seats: Sequence[Seat], links: Sequence[Link]) -> list[Finding]:
    """Compares clocks with the first host's, by the links that it measured.

    Clocks must agree because times of runs, checkpoints and logs are compared across hosts.
    """
    compared = [link for link in links if link.source == 0 and not link.error]
    faults = [
        Finding(
            check=CLOCKS,
            level="warn",
            found=f"the clock of {seats[link.target].host} is {_clock_apart(link)} that of "
            f"{seats[0].host}",
            advice=f"run a time service (chrony, ntpd) on {seats[link.target].host}",
        )
        for link in compared
        # The latency, half a round trip, is the error with which two clocks can be compared.
        if abs(link.clock_ahead_seconds) - link.latency_seconds > TOLERATED_SECONDS
    ]
    most = max((abs(link.clock_ahead_seconds) for link in compared), default=0.0)
    well = f"{most * 1e3:.1f} ms apart at most" if compared else "one clock"
    return limit_lines(faults, Finding(check=CLOCKS, level="ok", found=well))


def _clock_apart(link: Link) -> str:
    ahead = link.clock_ahead_seconds
    return f"{abs(ahead):.2f} s {'ahead of' if ahead > 0 else 'behind'}"
