"""Finds out from the reports of all leashes which rank keeps the others from going on."""

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.parallel.pulse import Report

SETTLE_SECONDS = 8.0
"""Time after the first rank is stuck in which the others report: several of their intervals."""
PATIENCE = 1.5
"""Times its limit that ranks which all wait for each other get. A slow link looks like that, so it
must also be known that nothing crosses the network."""
IDLE_RATE = 20_000
"""Bytes per second through a host's interfaces that pass for silence: reports, the store."""
SHOWN = 8
"""Number of ranks that a message lists."""


@dataclass
class _Seen:
    """The latest report of a rank."""

    report: Report
    at: float
    quiet_since: float
    """Since when hardly anything crosses the interfaces that it sees."""
    crossed: int
    """Bytes that had crossed by then."""


class Standstill:
    """Collects reports; `cause` names who stands still, once it is known.

    Threads that read the ranks' output may add reports at any time.
    """

    def __init__(self, hosts: Sequence[str], now: Callable[[], float] = time.monotonic) -> None:
        """`hosts`: the host name of every rank. `now`: a clock in seconds."""
        self._hosts = hosts
        self._now = now
        self._lock = threading.Lock()
        self._seen: dict[int, _Seen] = {}
        self._suspicious_since: float | None = None
        self._shortest = math.inf
        """The shortest limit of any report: nothing about a rank's stage delays reports."""

    def add(self, rank: int, report: Report) -> None:
        """Takes a rank's report; without a limit it is the last, because the rank has ended."""
        with self._lock:
            now, before = self._now(), self._seen.pop(rank, None)
            if not report.limit:
                return
            self._shortest = min(self._shortest, report.limit)
            quiet_since, crossed = now, report.crossed
            if before and crossed - before.crossed < IDLE_RATE * max(1.0, now - before.quiet_since):
                quiet_since, crossed = before.quiet_since, before.crossed
            self._seen[rank] = _Seen(report, now, quiet_since, crossed)

    def cause(self) -> str:
        """Who stands still, for how long and where; empty while the run may still go on."""
        with self._lock:
            return self._cause()

    def _cause(self) -> str:
        now = self._now()
        ranks = sorted(self._seen.items())  # they are in the order of their last reports
        silent = [rank for rank, seen in ranks if now - seen.at > self._shortest]
        stuck = [rank for rank, seen in ranks if seen.report.stuck]
        if not silent and not stuck:
            self._suspicious_since = None
            return ""
        if self._suspicious_since is None:
            self._suspicious_since = now
        if now - self._suspicious_since < SETTLE_SECONDS:
            return ""
        if silent:
            names = ", ".join(f"rank {rank} on {self._hosts[rank]}" for rank in silent[:SHOWN])
            longest = max(now - self._seen[rank].at for rank in silent)
            question = "is the host, or the link to it, down?"
            return self._message(f"nothing was heard of {names} for {longest:.0f} s: {question}")
        guilty = [rank for rank in stuck if not self._seen[rank].report.waits]
        if guilty:
            names = ", ".join(f"rank {rank} on {self._hosts[rank]}" for rank in guilty[:SHOWN])
            why = " (its process is stopped)" if self._seen[guilty[0]].report.stopped else ""
            return self._message(f"{names} did not move{why}, and others wait")
        return self._all_wait(now)

    def _all_wait(self, now: float) -> str:
        """The message if all ranks wait for each other and nothing crosses the network."""
        patient = any(
            seen.report.seconds < PATIENCE * seen.report.limit
            or now - seen.quiet_since < seen.report.limit
            for seen in self._seen.values()
        )
        if patient:
            return ""
        why = "a link is cut, or they wait for different collectives"
        return self._message(
            f"all ranks wait for each other, and nothing crosses the network: {why}"
        )

    def _message(self, what: str) -> str:
        lines = [f"{what}; all ranks are ended (train.stuck_seconds)"]
        for rank, seen in sorted(self._seen.items())[: 2 * SHOWN]:
            place = f"{seen.report.phase} of {seen.report.stage}"
            last = seen.report.collective
            lines.append(
                f"  rank {rank} on {self._hosts[rank]}: {place} for {seen.report.seconds:.0f} s"
                f"{', last collective ' * bool(last)}{last}"
            )
        return "\n".join([*lines, "the stacks of ranks that still answer are in the log"])
