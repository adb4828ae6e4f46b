"""Is every link between hosts as fast as the others? Names the host whose link is slow."""

from collections.abc import Mapping, Sequence
from statistics import median

from harness.doctor.finding import Finding, median_of_rest, told
from harness.doctor.links import Link, because, figures_of, in_speed
from harness.doctor.names import hosts_of, machines_of
from harness.doctor.seat import Seat

CHECK = "links"
SLOW = 0.5
"""Share of the others' median below which a link is at fault."""
LATE = 3.0
"""Times the others' median latency above which a host's is at fault,"""
LATE_SECONDS = 0.001
"""where it is also this much longer."""


def slow_pairs(seats: Sequence[Seat], links: Sequence[Link]) -> set[tuple[int, int]]:
    """Those to measure again before anything is said of them."""
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
    """Of `pairs_between`."""
    if not links:
        return [Finding(check=CHECK, level="ok", found="one host: no link between hosts")]
    figures = figures_of(links)
    if len(machines_of(seats)) == 1:
        figures = f"hosts are emulated on this machine: {figures}, not judged"
        return [Finding(check=CHECK, level="ok", found=figures)]
    slow = _slow_hosts(seats, links)
    faults = [_slow_host(host, seats, links) for host in slow]
    rest = [
        link for link in links if not {seats[link.source].host, seats[link.target].host} & set(slow)
    ]
    faults += _slow_links(seats, rest) + _late_hosts(seats, links)
    known = "" if len(links) > 1 else "; one link, compared with nothing"
    return told(faults, Finding(check=CHECK, level="ok", found=figures + known))


def _best(seats: Sequence[Seat], links: Sequence[Link]) -> dict[str, tuple[float, float]]:
    """Each host's fastest way out and in: slow if all its ways are, whatever the other end's."""
    best = dict.fromkeys(hosts_of(seats), (0.0, 0.0))
    for link in links:
        source, target = seats[link.source].host, seats[link.target].host
        for host, out, into in ((source, link.there, link.back), (target, link.back, link.there)):
            best[host] = max(best[host][0], out), max(best[host][1], into)
    return best


def _slow_hosts(seats: Sequence[Seat], links: Sequence[Link]) -> list[str]:
    """Of two hosts neither: which end is slow cannot be told."""
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
        check=CHECK,
        level="fail",
        found=f"the link of {host}: {in_speed(out)} out and {in_speed(into)} in, the other hosts' "
        f"median is {in_speed(usual_out)} and {in_speed(usual_in)}"
        + (f" ({errors[0]})" if errors else ""),
        advice=f"look at the cable, the port and the negotiated speed of {host}, and its load",
    )


def _slow_links(seats: Sequence[Seat], links: Sequence[Link]) -> list[Finding]:
    """Ways that are slow though both their hosts have fast ones, or that are in one direction."""
    faults = []
    ways = []
    for link in links:
        source, target = _ends(seats, link)
        if link.error:
            faults.append(_fault(source, target, f"nothing comes through{because(link)}"))
        else:
            ways += [(source, target, link.there), (target, source, link.back)]
    rates = [rate for _, _, rate in ways]
    for number, (source, target, rate) in enumerate(ways):
        others = median_of_rest(rates, number)
        if rate < SLOW * others:
            faults.append(_fault(source, target, f"{in_speed(rate)}, elsewhere {in_speed(others)}"))
    return faults


def _fault(source: str, target: str, found: str) -> Finding:
    return Finding(
        check=CHECK,
        level="fail",
        found=f"from {source} to {target} {found}",
        advice=f"look at what lies between {source} and {target}",
    )


def _late_hosts(seats: Sequence[Seat], links: Sequence[Link]) -> list[Finding]:
    shortest: dict[str, float] = {}
    for link in links:
        if not link.error:
            for host in _ends(seats, link):
                known = shortest.get(host, link.latency_seconds)
                shortest[host] = min(known, link.latency_seconds)
    return [
        Finding(
            check=CHECK,
            level="warn",
            found=f"{host} answers after {latency * 1e3:.2f} ms, the other hosts' median is "
            f"{usual * 1e3:.2f} ms",
            advice=f"look at the network's path to {host}, and its load",
        )
        for host, latency, usual in _with_usual(shortest)
        if latency > max(LATE * usual, usual + LATE_SECONDS)
    ]


def _with_usual(values: Mapping[str, float]) -> list[tuple[str, float, float]]:
    if len(values) < 3:
        return []
    numbers = list(values.values())
    return [
        (host, value, median_of_rest(numbers, number))
        for number, (host, value) in enumerate(values.items())
    ]


def _ends(seats: Sequence[Seat], link: Link) -> tuple[str, str]:
    return seats[link.source].host, seats[link.target].host
