"""A slow link is reported once, for its host, and not for every pair in which it shows."""

import pytest

from harness.doctor.links import (
    Link,
    better,
    judge_between,
    judge_clocks,
    judge_within,
    pairs_between,
    pairs_within,
    slow_pairs,
)
from harness.doctor.seat import Seat
from tests.doctor.seats import EMULATED, FOUR, seats

FAST = 25e6


def network(
    places: list[Seat],
    out: dict[str, float] | None = None,
    into: dict[str, float] | None = None,
    late: dict[str, float] | None = None,
) -> list[Link]:
    """All pairs of hosts; each direction is as fast as the slower of its two ends."""
    out, into, late = out or {}, into or {}, late or {}

    def way(source: str, target: str) -> float:
        return min(out.get(source, FAST), into.get(target, FAST))

    links = []
    for source, target in pairs_between(places):
        one, other = places[source].host, places[target].host
        latency = 0.0001 + late.get(one, 0) + late.get(other, 0)
        there, back = way(one, other), way(other, one)
        links.append(
            Link(source=source, target=target, latency_seconds=latency, there=there, back=back)
        )
    return links


def test_each_pair_once() -> None:
    assert pairs_between(seats(("h1", 2), ("h2", 2), ("h3", 2))) == [(0, 2), (0, 4), (2, 4)]
    assert pairs_between(seats(("h1", 4))) == []
    assert pairs_within(seats(("h1", 4), ("h2", 4))) == [(0, 3), (4, 7)]
    assert pairs_within(FOUR) == []


def test_equal_links_are_well() -> None:
    (finding,) = judge_between(FOUR, network(FOUR))
    assert finding.level == "ok"
    assert "6 pairs, 25 MB/s to 25 MB/s" in finding.found


@pytest.mark.parametrize("host", ["h1", "h2", "h3", "h4"])
def test_a_link_at_a_tenth_is_its_hosts(host: str) -> None:
    slow = {host: FAST / 10}
    (finding,) = judge_between(FOUR, network(FOUR, slow, slow))
    assert finding.level == "fail"
    assert finding.found == (
        f"the link of {host}: 2.5 MB/s out and 2.5 MB/s in; the other hosts' median is "
        f"25 MB/s and 25 MB/s"
    )


def test_one_direction_is_enough() -> None:
    (finding,) = judge_between(FOUR, network(FOUR, into={"h2": 5e6}))
    assert "the link of h2: 25 MB/s out and 5 MB/s in" in finding.found


def test_two_slow_hosts_of_four_are_both_named() -> None:
    slow = {"h2": 2e6, "h4": 2e6}
    findings = judge_between(FOUR, network(FOUR, slow, slow))
    assert [finding.found[:14] for finding in findings] == ["the link of h2", "the link of h4"]


def test_three_hosts_are_enough_to_tell() -> None:
    three = FOUR[:3]
    (finding,) = judge_between(three, network(three, {"h1": 2e6}, {"h1": 2e6}))
    assert finding.found.startswith("the link of h1")


def test_between_two_hosts_the_way_is_named() -> None:
    two = FOUR[:2]
    (finding,) = judge_between(two, network(two, out={"h1": 2e6}))
    assert finding.found == "from h1 to h2: 2 MB/s; elsewhere 25 MB/s"
    (well,) = judge_between(two, network(two))
    assert well.found.endswith("a single link, so nothing to compare it with")


def test_a_slow_way_between_two_good_hosts() -> None:
    links = network(FOUR)
    links[4] = links[4].model_copy(update={"there": 1e6, "back": 1e6})
    findings = judge_between(FOUR, links)
    assert [finding.found for finding in findings] == [
        "from h2 to h4: 1 MB/s; elsewhere 25 MB/s",
        "from h4 to h2: 1 MB/s; elsewhere 25 MB/s",
    ]
    assert slow_pairs(FOUR, links) == {(1, 3)}


def test_a_host_that_nobody_reaches() -> None:
    links = [
        Link(source=link.source, target=link.target, error="timed out")
        if 2 in (link.source, link.target)
        else link
        for link in network(FOUR)
    ]
    (finding,) = judge_between(FOUR, links)
    assert finding.found.startswith("the link of h3: 0 B/s out and 0 B/s in")
    assert finding.found.endswith("(timed out)")


def test_two_hosts_that_do_not_meet() -> None:
    links = [Link(source=0, target=1, error="connection refused")]
    (finding,) = judge_between(FOUR[:2], links)
    assert finding.found == "from h1 to h2: no connection (connection refused)"


def test_a_late_host_is_a_warning() -> None:
    (finding,) = judge_between(FOUR, network(FOUR, late={"h4": 0.01}))
    assert finding.level == "warn"
    assert finding.found == "h4 answers after 10.10 ms; the other hosts' median is 0.10 ms"


def test_emulated_hosts_have_no_link_to_judge() -> None:
    link = Link(source=0, target=2, there=6e9, back=1e9)
    (finding,) = judge_between(EMULATED, [link])
    assert finding.level == "ok"
    assert finding.found.startswith("hosts are emulated on this machine")


def test_measuring_again_keeps_the_better() -> None:
    first = Link(source=0, target=1, latency_seconds=0.2, there=1.0, back=9.0)
    second = Link(source=0, target=1, latency_seconds=0.1, there=5.0, back=3.0)
    both = better(first, second)
    assert (both.latency_seconds, both.there, both.back) == (0.1, 5.0, 9.0)
    broken = Link(source=0, target=1, error="timed out")
    assert better(broken, second) == better(second, broken) == second


def test_a_slow_inside_is_a_warning() -> None:
    three = seats(("h1", 2), ("h2", 2), ("h3", 2))
    rates = (5e9, 1e9, 4e9)
    links = [
        Link(source=source, target=target, there=rate, back=rate)
        for (source, target), rate in zip(pairs_within(three), rates, strict=True)
    ]
    (finding,) = judge_within(three, links)
    assert finding.level == "warn"
    assert finding.found == "inside h2: 1 GB/s; the other hosts' median is 4.5 GB/s"
    assert judge_within(three[:2], links[:1])[0].level == "ok"


def test_the_only_host_with_two_ranks_is_compared_with_none() -> None:
    places = seats(("h1", 2), ("h2", 1))
    ((source, target),) = pairs_within(places)
    link = Link(source=source, target=target, there=1e9, back=1e9)
    (finding,) = judge_within(places, [link])
    assert finding.level == "ok"


@pytest.mark.parametrize(("ahead", "level"), [(0.05, "ok"), (0.5, "warn"), (-0.5, "warn")])
def test_clocks(ahead: float, level: str) -> None:
    links = network(FOUR)
    links[1] = links[1].model_copy(update={"clock_ahead_seconds": ahead})
    (finding,) = judge_clocks(FOUR, links)
    assert finding.level == level
    if level == "warn":
        side = "ahead of" if ahead > 0 else "behind"
        assert finding.found == f"the clock of h3 is 0.50 s {side} that of h1"


def test_a_slow_round_trip_is_no_clock_fault() -> None:
    link = Link(source=0, target=1, latency_seconds=0.3, clock_ahead_seconds=0.25)
    assert judge_clocks(FOUR, [link])[0].level == "ok"
    assert judge_clocks(FOUR[:1], [])[0].found == "one clock"
