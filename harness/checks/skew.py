"""Do the hosts' clocks agree? Times of runs, checkpoints and logs are compared across them."""

from collections.abc import Sequence

from harness.doctor.finding import Finding, told
from harness.doctor.links import Link
from harness.doctor.seat import Seat

CHECK = "clocks"
TOLERATED_SECONDS = 0.1


def judge_clocks(seats: Sequence[Seat], links: Sequence[Link]) -> list[Finding]:
    """Against the first host's clock, by the links that it measured."""
    compared = [link for link in links if link.source == 0 and not link.error]
    faults = [
        Finding(
            check=CHECK,
            level="warn",
            found=f"the clock of {seats[link.target].host} is {_apart(link)} that of "
            f"{seats[0].host}",
            advice=f"let a time service (chrony, ntpd) run on {seats[link.target].host}",
        )
        for link in compared
        # Half a round trip is how well two clocks can be compared.
        if abs(link.clock_ahead_seconds) - link.latency_seconds > TOLERATED_SECONDS
    ]
    most = max((abs(link.clock_ahead_seconds) for link in compared), default=0.0)
    well = f"{most * 1e3:.1f} ms apart at most" if compared else "one clock"
    return told(faults, Finding(check=CHECK, level="ok", found=well))


def _apart(link: Link) -> str:
    ahead = link.clock_ahead_seconds
    return f"{abs(ahead):.2f} s {'ahead of' if ahead > 0 else 'behind'}"
