"""Times transfers inside nodes and between them, by what training sends them through."""

import time
from collections.abc import Callable, Sequence
from typing import Any

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
"""Transfers without a rest, which show a link's lasting rate."""


Operation = Callable[[], object]
NOBODY = Point(size=0, seconds=0, cpu_seconds=0)
"""Where there is no other rank to send anything to."""
FASTEST = Repeat(best=True)


def transfer_times(world: World, seconds: float) -> dict[str, Any]:
    """The fields of `Calibration` that are times of transfers. Collective over the world."""
    sends = _Transfers(world, seconds)
    return sends.in_node() | sends.by_torch() | sends.by_horovod() | sends.to_the_host()


class _Transfers:
    """What training sends, each as training sends it, `seconds` for each size."""

    def __init__(self, world: World, seconds: float) -> None:
        self._world = world
        self._seconds = seconds
        self._between = world.peers.size > 1

    def in_node(self) -> dict[str, Any]:
        if self._world.node.size == 1:
            return {"gather": (NOBODY,)}
        return {"gather": self._points(IN_NODE_BYTES, self._gather)}

    def by_torch(self) -> dict[str, Any]:
        """Among all ranks, at once and after a rest."""
        if self._world.everyone.size == 1:
            return {"flat": (NOBODY,), "flat_after_rest": (NOBODY,)}
        flats = self._points(FLAT_BYTES, self._flat, Repeat(least=BACK_TO_BACK, best=True))
        rested: tuple[Point, ...] = (NOBODY,)
        if self._between:
            rested = self._points([int(flats[-1].size)], self._flat, Repeat(rest=REST_SECONDS))
        return {"flat": flats, "flat_after_rest": rested}

    def by_horovod(self) -> dict[str, Any]:
        """Between nodes: waited for at once, and under way beside something else."""
        if not self._between:
            return {"peers": (NOBODY,), "idle": NOBODY, "under_way": (NOBODY,)}
        return {
            "peers": self._points(PEERS_BYTES, self._late, Repeat(rest=OUT_OF_STEP_SECONDS)),
            "idle": self._beside(_pause, 0),
            "under_way": tuple(
                self._beside(self._under_way(size), size) for size in UNDER_WAY_BYTES
            ),
        }

    def to_the_host(self) -> dict[str, Any]:
        on_card = self._world.device.type == "cuda"
        return {"host_copy": self._points(COPIED_BYTES, self._host_copy) if on_card else ()}

    def _points(
        self,
        sizes: Sequence[int],
        make: Callable[[int], Operation],
        repeat: Repeat = FASTEST,
    ) -> tuple[Point, ...]:
        found: list[Point] = []
        for size in sizes:
            if found and found[-1].seconds * size / found[-1].size > LONGEST_TRANSFER_SECONDS:
                break
            found.append(timed(self._world, make(size), size, self._seconds, repeat))
        return tuple(found)

    def _beside(self, operation: Operation, size: float) -> Point:
        return timed(self._world, operation, size, UNDER_WAY_BLOCKS * self._seconds)

    def _gather(self, size: int) -> Operation:
        node, block = self._world.node, self._floats(size)
        into = block.new_empty(len(block) * node.size)
        return lambda: node.launch_all_gather(block, into).wait()

    def _flat(self, size: int) -> Operation:
        buffer = self._floats(size)
        return lambda: self._world.everyone.launch_sum(buffer).wait()

    def _late(self, size: int) -> Operation:
        buffer = self._floats(size)
        return lambda: self._world.peers.launch_sum(buffer, f"calibration.{size}").wait()

    def _host_copy(self, size: int) -> Operation:
        """As an exchange between cards goes by way of host memory."""
        buffer = self._floats(size)
        host = torch.empty(buffer.shape, pin_memory=True)
        return lambda: host.copy_(buffer, non_blocking=True)

    def _under_way(self, size: int) -> Operation:
        """As a late exchange: whoever launched it does something else until it is done."""
        buffer = self._floats(size)

        def one() -> None:
            launched = self._world.peers.launch_sum(buffer, f"calibration.{size}.late")
            _pause()
            launched.wait()

        return one

    def _floats(self, size: int) -> Tensor:
        return torch.zeros(size // 4, device=self._world.device)


def _pause() -> None:
    time.sleep(UNDER_WAY_SECONDS)
