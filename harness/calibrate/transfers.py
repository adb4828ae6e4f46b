"""Times transfers inside nodes and between them, through the libraries that training uses."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.calibrate.repeated import Repeat, timed
from harness.calibrate.result import Point
from harness.parallel.world import World

LONGEST_BYTES_SECONDS = 0.5
"""Larger sizes are left out once the bytes of a transfer, without its latency, would take longer
than this."""
TINY_BYTES = 1024
"""A transfer that is all latency, even on a slow link. With it, two sizes are known of every link,
and its latency and rate can be told apart."""
IN_NODE_BYTES = (16_384, 262_144, 2_097_152)
FLAT_BYTES = (TINY_BYTES, 32_768, 1_048_576, 4_194_304)
"""Up to the default of `exchange.bucket_mb`, which is what the baseline sends in one piece."""
PEERS_BYTES = (TINY_BYTES, 32_768, 2_097_152, 16_777_216)
COPIED_BYTES = (2_097_152, 67_108_864)
UNDER_WAY_BYTES = (32_768, 1_048_576)
UNDER_WAY_SECONDS = 0.2
"""Length of the pause in which a transfer is under way."""
UNDER_WAY_BLOCKS = 4
"""Factor of the time for these measurements: the processor time of a transfer is small compared
with that of idle threads, so more repetitions are needed."""
REST_SECONDS = 0.3
"""Pause in which a link's token bucket fills up."""
OUT_OF_STEP_SECONDS = 0.02
"""Mean pause before a transfer, so that transfers do not all hit the same point of Horovod's
cycle."""
BACK_TO_BACK = 4
"""Transfers without a pause between them, which measure a link's sustained rate."""
NOTHING = Point(size=0, seconds=0, cpu_seconds=0)
"""Time of a transfer that these ranks never make."""

Transfer = Callable[[], object]


@dataclass(frozen=True)
class TransferTimes:
    """Times of transfers; the fields have the same names as in `Calibration`."""

    gather: tuple[Point, ...]
    flat: tuple[Point, ...]
    flat_after_rest: tuple[Point, ...]
    peers: tuple[Point, ...]
    host_copy: tuple[Point, ...]
    idle: Point
    under_way: tuple[Point, ...]


def transfer_times(world: World, seconds: float) -> TransferTimes:
    """Times each transfer in every size, for about `seconds` each. Collective over the world."""
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
        """Times the sizes in increasing order, at least two, until one would take too long.

        `rest` and `least`: see `harness.calibrate.repeated.Repeat`. Collective over the world.
        """
        found: list[Point] = []
        for size in sizes:
            if len(found) > 1 and _bytes_seconds(found, size) > LONGEST_BYTES_SECONDS:
                break
            transfer = make(self._world, size)
            found.append(
                timed(
                    self._world, transfer, size, self._seconds, Repeat(rest, least, best=not rest)
                )
            )
        return tuple(found)

    def beside(self, operation: Transfer, size: float) -> Point:
        """Times an operation that runs while the rank does nothing else."""
        return timed(self._world, operation, size, UNDER_WAY_BLOCKS * self._seconds)


def _bytes_seconds(found: Sequence[Point], size: int) -> float:
    """Seconds that a transfer of `size` would take beyond its latency.

    The latency is that of the smallest transfer: it is the same for all sizes, and may be most of
    the time of each.
    """
    first, last = found[0], found[-1]
    return (last.seconds - first.seconds) * size / (last.size - first.size)


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
    """A copy to host memory, through which exchanges between cards of different nodes go."""
    buffer = _floats(size, world.device)
    host = torch.empty(buffer.shape, pin_memory=True)
    return lambda: host.copy_(buffer, non_blocking=True)


def _under_way(world: World, size: int) -> Transfer:
    """A late exchange: the rank launches it, does something else, and waits when it is complete."""
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
