"""Do the ranks of a host reach each other as fast as those of the other hosts do?"""

from collections.abc import Sequence

from harness.doctor.finding import Finding, median_of_rest, told
from harness.doctor.links import Link, because, figures_of, in_speed
from harness.doctor.names import machines_of
from harness.doctor.seat import Seat

CHECK = "in-host"
SLOW = 0.5
"""Share of the others' median below which a host is told of."""


def judge_within(seats: Sequence[Seat], links: Sequence[Link]) -> list[Finding]:
    """Of `pairs_within`. A warning only: cards of a host have ways of their own."""
    if not links:
        return [Finding(check=CHECK, level="ok", found="one rank on each host: no link inside")]
    rates = [min(link.there, link.back) for link in links]
    faults = [
        Finding(
            check=CHECK,
            level="warn",
            found=f"inside {seats[link.source].host} {in_speed(rates[number])}, the other hosts' "
            f"median is {in_speed(median_of_rest(rates, number))}" + because(link),
            advice=f"look for other work on {seats[link.source].host}",
        )
        for number, link in enumerate(links)
        if len(machines_of(seats)) > 1 and rates[number] < SLOW * median_of_rest(rates, number)
    ]
    return told(faults, Finding(check=CHECK, level="ok", found=figures_of(links)))
