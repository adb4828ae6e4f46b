"""Latency and rate of a link come out of a calibration as they are, on slow and far links too."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.calibrate import transfers
from harness.calibrate.result import Point
from harness.calibrate.transfers import LONGEST_BYTES_SECONDS, TransferTimes, transfer_times
from harness.errors import UserError
from harness.plan.from_calibration import cluster_from
from tests.plan.test_from_calibration import made

NODES = 8
SENT = 2 * (NODES - 1) / NODES
"""Bytes that a rank sends in an all-reduce, for one of its buffer."""
STEPS = 2 * (NODES - 1)


def timed_on(
    step_seconds: float, bytes_per_second: float, monkeypatch: pytest.MonkeyPatch
) -> TransferTimes:
    """What is timed on nodes of one rank, if all transfers take what the link's figures say."""

    def timed(world: object, operation: object, size: float, *_: Any) -> Point:
        seconds = STEPS * step_seconds + size * SENT / bytes_per_second
        return Point(size=size, seconds=seconds, cpu_seconds=0.0)

    monkeypatch.setattr(transfers, "timed", timed)
    alone, all_of_them = SimpleNamespace(size=1), SimpleNamespace(size=NODES)
    world = SimpleNamespace(
        node=alone, peers=all_of_them, everyone=all_of_them, device=torch.device("cpu")
    )
    return transfer_times(world, seconds=0.6)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("step_seconds", "bytes_per_second"),
    [
        (1e-4, 1e8),  # a rack
        (6e-2, 1e8),  # far away: 0.84 s of latency in each transfer
        (1e-4, 1e5),  # slow: a megabyte takes 18 s
        (6e-2, 1e5),
    ],
)
def test_latency_is_told_from_rate(
    step_seconds: float, bytes_per_second: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = timed_on(step_seconds, bytes_per_second, monkeypatch)
    timed = {"flat": found.flat, "flat_after_rest": found.flat_after_rest, "peers": found.peers}
    hosts = tuple(f"h{number}" for number in range(NODES))
    given = made(nodes=NODES, ranks_per_node=1, hosts=hosts, **timed)
    link = cluster_from(given).link
    assert link.bytes_per_second == pytest.approx(bytes_per_second, rel=1e-3)
    # The smallest transfer has some bytes, too.
    tiny = transfers.TINY_BYTES * SENT / bytes_per_second / STEPS
    assert link.step_seconds == pytest.approx(step_seconds + tiny)


@pytest.mark.parametrize("bytes_per_second", [1e3, 1e5, 1e7])
def test_sizes_that_would_take_long_are_left_out(
    bytes_per_second: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = timed_on(6e-2, bytes_per_second, monkeypatch)
    for points in (found.flat, found.peers):
        assert len(points) > 1
        for each in points[2:]:
            assert each.size * SENT / bytes_per_second < 1.01 * LONGEST_BYTES_SECONDS


def test_one_size_alone_is_refused() -> None:
    flat = (Point(size=32_768, seconds=0.12, cpu_seconds=0.0),)
    with pytest.raises(UserError, match=r"one size only \(49152 bytes\)"):
        cluster_from(made(flat=flat))
