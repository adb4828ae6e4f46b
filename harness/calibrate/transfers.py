"""Times transfers inside nodes and between them, by what training sends them through."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.calibrate.repeated import Repeat, timed
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
"""Timed for this many times as long: a transfer's work is little beside what threads do anyway."""
REST_SECONDS = 0.3
"""Long enough for a link's token bucket to fill up."""
OUT_OF_STEP_SECONDS = 0.02
"""About so long after the one before: no transfer may meet Horovod's cycle at the same point."""
BACK_TO_BACK = 4
"""Transfers without a rest, for a link's lasting rate."""
NOTHING = Point(size=0, seconds=0, cpu_seconds=0)
"""The time of a transfer that these ranks never make."""

Transfer = Callable[[], object]


@dataclass(frozen=True)
class TransferTimes:
    """See `Calibration`, which has the same names."""

    gather: tuple[Point, ...]
    flat: tuple[Point, ...]
    flat_after_rest: tuple[Point, ...]
    peers: tuple[Point, ...]
    host_copy: tuple[Point, ...]
    idle: Point
    under_way: tuple[Point, ...]


def transfer_times(world: World, seconds: float) -> TransferTimes:
    """About so many seconds of each transfer, in every size. Collective over the world."""
    inside, between = world.node.size > 1, world.peers.size > 1
    card = world.device.type == "cuda"
    sizes = _Sizes(world, seconds)
    flats = sizes.timed(FLAT_BYTES, _flat, least=BACK_TO_BACK) if world.everyone.size > 1 else ()
    largest = [int(flats[-1].size)] if between else []
    return TransferTimes(
        gather=sizes.timed(IN_NODE_BYTES, _gather) if inside else (NOTHING,),
        flat=flats or (NOTHING,),
        flat_after_rest=sizes.timed(largest, _flat, REST_SECONDS) or (NOTHING,),
        peers=sizes.timed(PEERS_BYTES, _late, OUT_OF_STEP_SECONDS) if between else (NOTHING,),
        host_copy=sizes.timed(COPIED_BYTES, _host_copy) if card else (),
        idle=sizes.beside(_pause, 0) if between else NOTHING,
        under_way=tuple(sizes.beside(_under_way(world, size), size) for size in UNDER_WAY_BYTES)
        if between
        else (NOTHING,),
    )


class _Sizes:
    """Times one transfer in several sizes."""

    def __init__(self, world: World, seconds: float) -> None:
        self._world = world
        self._seconds = seconds

    def timed(
        self,
        sizes: Sequence[int],
        make: Callable[[World, int], Transfer],
        rest: float = 0.0,
        least: int = 1,
    ) -> tuple[Point, ...]:
        """From the smallest on, until one would take too long; see `harness.calibrate.repeated`."""
        found: list[Point] = []
        for size in sizes:
            if found and found[-1].seconds * size / found[-1].size > LONGEST_TRANSFER_SECONDS:
                break
            transfer = make(self._world, size)
            found.append(
                timed(
                    self._world, transfer, size, self._seconds, Repeat(rest, least, best=not rest)
                )
            )
        return tuple(found)

    def beside(self, operation: Transfer, size: float) -> Point:
        """One that runs while the rank does nothing else."""
        return timed(self._world, operation, size, UNDER_WAY_BLOCKS * self._seconds)


def _gather(world: World, size: int) -> Transfer:
    block = _floats(size, world.device)
    into = block.new_empty(len(block) * world.node.size)
    return lambda: world.node.launch_all_gather(block, into).wait()


def _flat(world: World, size: int) -> Transfer:
    buffer = _floats(size, world.device)
    return lambda: world.everyone.launch_sum(buffer).wait()


def _late(world: World, size: int) -> Transfer:
    buffer = _floats(size, world.device)
    return lambda: world.peers.launch_sum(buffer, f"calibration.{size}").wait()


def _host_copy(world: World, size: int) -> Transfer:
    """As an exchange between cards goes by way of host memory."""
    buffer = _floats(size, world.device)
    host = torch.empty(buffer.shape, pin_memory=True)
    return lambda: host.copy_(buffer, non_blocking=True)


def _under_way(world: World, size: int) -> Transfer:
    """As a late exchange: whoever launched it does something else until it is done."""
    buffer = _floats(size, world.device)

    def one() -> None:
        launched = world.peers.launch_sum(buffer, f"calibration.{size}.late")
        _pause()
        launched.wait()

    return one


def _pause() -> None:
    time.sleep(UNDER_WAY_SECONDS)


def _floats(size: int, device: torch.device) -> Tensor:
    return torch.zeros(size // 4, device=device)
