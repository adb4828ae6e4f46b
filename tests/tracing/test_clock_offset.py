"""Clocks of other machines: the measured offset is the one that was set."""

import time

import pytest
import torch.distributed as dist

from harness.tracing.clock_offset import ClockOffset, clock_offsets
from tests.ranks import run_on_ranks

MACHINES = ["a", "a", "b", "b", "c", "a"]
AHEAD_SECONDS = {"a": 0.0, "b": 5.0, "c": -3.0}


def measured() -> list[ClockOffset]:
    rank = dist.get_rank()
    ahead = round(AHEAD_SECONDS[MACHINES[rank]] * 1e9)
    return clock_offsets(rank, MACHINES, lambda: time.time_ns() + ahead)


def test_how_far_each_ranks_clock_is_ahead() -> None:
    found, *others = run_on_ranks(measured, len(MACHINES))
    assert others == [[]] * (len(MACHINES) - 1)
    for machine, offset in zip(MACHINES, found, strict=True):
        assert abs(offset.ahead_seconds - AHEAD_SECONDS[machine]) <= offset.within_seconds
        assert offset.within_seconds < 0.5
    assert found[0] == found[1] == found[5] == ClockOffset(), "one machine has one clock"
    assert found[2] == found[3]


@pytest.mark.parametrize("ranks", [1, 4])
def test_ranks_of_one_machine_ask_nobody(ranks: int) -> None:
    """It needs no process group, and there is none."""
    assert clock_offsets(0, ["a"] * ranks) == [ClockOffset()] * ranks
    assert clock_offsets(ranks, ["a"] * (ranks + 1)) == []
