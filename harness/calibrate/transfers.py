"""Times transfers inside nodes and between them, by what training sends them through."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from harness.calibrate.repeated import timed
from harness.calibrate.result import Point
from harness.parallel.world import World

LONGEST_TRANSFER_SECONDS = 0.5
"""Sizes of transfers between nodes stop where one takes longer."""
IN_NODE_BYTES = (16_384, 262_144, 2_097_152)
FLAT_BYTES = (32_768, 1_048_576, 4_194_304)
"""Up to `exchange.bucket_mb`'s default: what the baseline sends in one piece."""
PEERS_BYTES = (32_768, 2_097_152, 16_777_216)
COPIED_BYTES = (2_097_152, 67_108_864)
UNDER_WAY_BYTES = (32_768, 1_048_576)
UNDER_WAY_SECONDS = 0.2
UNDER_WAY_BLOCKS = 4
"""Times as long as other timings: a transfer's work is little beside what threads do anyway."""
REST_SECONDS = 0.3
"""A token bucket fills up."""
OUT_OF_STEP_SECONDS = 0.02
"""About so long after the one before: a transfer must not find Horovod's cycle just beginning."""
BACK_TO_BACK = 4
"""Transfers without a rest, where a link's lasting rate is asked for."""


def transfer_times(world: World, seconds: float) -> dict[str, Any]:
    node, everyone, peers = world.node, world.everyone, world.peers
    nobody = Point(size=0, seconds=0, cpu_seconds=0)

    def points(
        sizes: Sequence[int],
        make: Callable[[int], Callable[[], object]],
        rest: float = 0.0,
        least: int = 1,
    ) -> tuple[Point, ...]:
        found: list[Point] = []
        for size in sizes:
            if found and found[-1].seconds * size / found[-1].size > LONGEST_TRANSFER_SECONDS:
                break
            found.append(timed(world, make(size), size, seconds, rest, least, best=not rest))
        return tuple(found)

    def gather(size: int) -> Callable[[], object]:
        block = _floats(size, world.device)
        into = block.new_empty(len(block) * node.size)
        return lambda: node.launch_all_gather(block, into).wait()

    def flat(size: int) -> Callable[[], object]:
        buffer = _floats(size, world.device)
        return lambda: everyone.launch_sum(buffer).wait()

    def late(size: int) -> Callable[[], object]:
        buffer = _floats(size, world.device)
        return lambda: peers.launch_sum(buffer, f"calibration.{size}").wait()

    def host_copy(size: int) -> Callable[[], object]:
        """As an exchange between cards goes by way of host memory."""
        buffer = _floats(size, world.device)
        host = torch.empty(buffer.shape, pin_memory=True)
        return lambda: host.copy_(buffer, non_blocking=True)

    def under_way(size: int) -> Callable[[], object]:
        """As a late exchange: whoever launched it does something else until it is done."""
        buffer = _floats(size, world.device)

        def one() -> None:
            launched = peers.launch_sum(buffer, f"calibration.{size}.late")
            time.sleep(UNDER_WAY_SECONDS)
            launched.wait()

        return one

    def idle() -> None:
        time.sleep(UNDER_WAY_SECONDS)

    def beside(operation: Callable[[], object], size: float) -> Point:
        return timed(world, operation, size, UNDER_WAY_BLOCKS * seconds)

    inside, between = node.size > 1, peers.size > 1
    flats = points(FLAT_BYTES, flat, least=BACK_TO_BACK) if everyone.size > 1 else (nobody,)
    most = [int(flats[-1].size)] if between else []
    return {
        "gather": points(IN_NODE_BYTES, gather) if inside else (nobody,),
        "flat": flats,
        "flat_after_rest": points(most, flat, REST_SECONDS) or (nobody,),
        "peers": points(PEERS_BYTES, late, OUT_OF_STEP_SECONDS) if between else (nobody,),
        "host_copy": points(COPIED_BYTES, host_copy) if world.device.type == "cuda" else (),
        "idle": beside(idle, 0) if between else nobody,
        "under_way": tuple(beside(under_way(size), size) for size in UNDER_WAY_BYTES)
        if between
        else (nobody,),
    }


def _floats(size: int, device: torch.device) -> Tensor:
    return torch.zeros(size // 4, device=device)
