"""Who keeps the others from going on, from what the leashes report."""

import sys
import threading
from functools import partial

import pytest

from harness.launch.standstill import IDLE_RATE, SETTLE_SECONDS, Standstill
from harness.parallel.pulse import CARD_WAIT, SLOW, Report

LIMIT, LOOK = 60.0, 2.0
HOSTS = ("h1", "h1", "h2", "h2")


class Launch:
    """Four ranks on two hosts whose leashes report every two seconds."""

    def __init__(self) -> None:
        self.now = 0.0
        self.standstill = Standstill(HOSTS, lambda: self.now)
        self.since = dict.fromkeys(range(4), 0.0)
        self.phases = dict.fromkeys(range(4), "slice_wait")
        self.limits = dict.fromkeys(range(4), LIMIT)
        self.stopped: set[int] = set()
        self.silent: set[int] = set()
        self.crossed = 0

    def runs(self, seconds: float, moving: tuple[int, ...] = (), rate: int = 0) -> str:
        """Lets time pass in which some ranks move; returns the first cause, or else ""."""
        until = self.now + seconds
        while self.now < until:
            self.now += LOOK
            self.crossed += int(rate * LOOK)
            for rank in sorted(set(range(4)) - self.silent, reverse=True):
                if rank in moving:
                    self.since[rank] = self.now
                report = Report(
                    seconds=self.now - self.since[rank],
                    limit=self.limits[rank],
                    phase=self.phases[rank],
                    stage="window 7",
                    stopped=rank in self.stopped,
                    crossed=self.crossed,
                )
                self.standstill.add(rank, report)
            if cause := self.standstill.cause():
                return cause
        return ""


ALL = (0, 1, 2, 3)


def test_reports_may_come_while_the_cause_is_looked_for(request: pytest.FixtureRequest) -> None:
    """A launch once ended with "dictionary keys changed during iteration"."""
    request.addfinalizer(partial(sys.setswitchinterval, sys.getswitchinterval()))
    sys.setswitchinterval(1e-6)
    standstill, ended = Standstill(HOSTS), threading.Event()
    fine = Report(
        seconds=0.0, limit=LIMIT, phase="forward", stage="window 7", stopped=False, crossed=0
    )

    def report() -> None:
        while not ended.is_set():
            for rank in range(4):
                standstill.add(rank, fine)

    reporter = threading.Thread(target=report)
    reporter.start()
    try:
        assert {standstill.cause() for _ in range(20_000)} == {""}
    finally:
        ended.set()
        reporter.join()


def test_ranks_that_move_are_left_alone() -> None:
    assert Launch().runs(1000, moving=ALL) == ""


def test_a_rank_that_works_on_and_on_is_named() -> None:
    launch = Launch()
    assert launch.runs(20, moving=ALL) == ""
    launch.phases[2] = "data"
    cause = launch.runs(2 * LIMIT)
    first, *ranks, last = cause.splitlines()
    assert first == (
        "rank 2 on h2 did not move, and others wait; all ranks are ended (train.stuck_seconds)"
    )
    assert ranks[2] == f"  rank 2 on h2: data of window 7 for {launch.now - 20:.0f} s"
    assert len(ranks) == len(HOSTS)
    assert "log" in last
    assert LIMIT < launch.now - 20 <= LIMIT + SETTLE_SECONDS + 2 * LOOK


def test_ranks_whose_cards_wait_for_its_own_are_not_named() -> None:
    launch = Launch()
    launch.phases |= dict.fromkeys((0, 1, 3), CARD_WAIT) | {2: "data"}
    assert launch.runs(2 * LIMIT).startswith("rank 2 on h2 did not move, and others wait")


def test_a_stopped_rank_is_named_even_if_it_waited() -> None:
    launch = Launch()
    launch.stopped.add(1)
    assert launch.runs(2 * LIMIT).startswith(
        "rank 1 on h1 did not move (its process is stopped), and others wait"
    )


def test_a_host_that_is_gone_is_named() -> None:
    launch = Launch()
    launch.runs(20, moving=ALL)
    launch.silent |= {2, 3}
    cause = launch.runs(2 * LIMIT)
    assert cause.startswith("nothing was heard of rank 2 on h2, rank 3 on h2 for ")
    assert launch.now - 20 <= LIMIT + SETTLE_SECONDS + 2 * LOOK


@pytest.mark.parametrize(("rate", "ends"), [(0, True), (IDLE_RATE // 2, True), (10**6, False)])
def test_ranks_that_all_wait_are_ended_if_nothing_crosses_the_network(
    rate: int, ends: bool
) -> None:
    launch = Launch()
    cause = launch.runs(2 * LIMIT, rate=rate)
    assert cause.startswith("all ranks wait for each other, and nothing crosses") == ends
    assert bool(cause) == ends


def test_ranks_may_wait_for_one_in_a_slow_stage() -> None:
    launch = Launch()
    launch.phases[0], launch.limits[0] = "other", SLOW * LIMIT
    assert launch.runs((SLOW - 1) * LIMIT) == ""
    assert launch.runs(2 * LIMIT).startswith("rank 0 on h1 did not move")


def test_a_rank_that_goes_on_in_time_is_forgiven() -> None:
    launch = Launch()
    launch.phases[2] = "data"
    assert launch.runs(LIMIT + SETTLE_SECONDS / 2) == ""
    assert launch.runs(LIMIT / 2, moving=ALL) == ""
    assert launch.runs(LIMIT / 2) == ""


def test_a_rank_that_has_ended_is_not_missed() -> None:
    launch = Launch()
    launch.runs(20, moving=ALL)
    launch.limits[3] = 0.0
    launch.runs(2, moving=ALL)
    launch.silent.add(3)
    assert launch.runs(10 * LIMIT, moving=ALL) == ""


def test_nothing_is_known_before_the_first_report() -> None:
    launch = Launch()
    launch.silent |= set(ALL)
    assert launch.runs(1000) == ""
