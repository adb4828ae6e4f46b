"""How long an operation takes when all ranks do it at once: from one barrier of all to the next."""

import statistics
import time
from collections.abc import Callable

import torch

from harness.calibrate.result import Point
from harness.parallel.world import World

GOLDEN = 0.618
"""Multiples of it, less their whole part, fall evenly between 0 and 1."""
BLOCKS = 5
"""Medians are of so many blocks of repetitions."""


def timed(
    world: World,
    operation: Callable[[], object],
    size: float,
    seconds: float,
    rest: float = 0.0,
    least: int = 1,
    best: bool = False,
) -> Point:
    """About so many seconds of `operation` in all, at least so many times in a row.

    `best`: of the blocks the fastest in place of the median, for what others on the machine
    disturb and no processor time tells. `rest` before each, more or less, is not counted. Before
    more than one in a row comes one that is not counted: what a link had saved up is spent then.
    All ranks repeat it equally often. Collective over the world.
    """
    once = _block(world, operation, 1, rest)
    repetitions = max(least, round(seconds / BLOCKS / (mean(world, once[0]) + rest + 1e-9)))
    spent_first = least > 1
    blocks = [_block(world, operation, repetitions, rest, spent_first) for _ in range(BLOCKS)]
    pick = min if best else statistics.median
    wall, cpu = (pick(column) for column in zip(*blocks, strict=True))
    return Point(size=size, seconds=mean(world, wall), cpu_seconds=mean(world, cpu))


def _block(
    world: World,
    operation: Callable[[], object],
    repetitions: int,
    rest: float,
    spent_first: bool = False,
) -> tuple[float, float]:
    """Wall and processor seconds of one repetition."""
    barrier(world)
    if spent_first:
        operation()
    wall = cpu = 0.0
    for number in range(repetitions):
        if rest:
            time.sleep(rest * (0.5 + number * GOLDEN % 1))
            barrier(world)
        started, busy = now(world), time.process_time()
        operation()
        wall += now(world) - started
        cpu += time.process_time() - busy
    return wall / repetitions, cpu / repetitions


def barrier(world: World) -> None:
    """Collective over the world."""
    world.everyone.launch_sum(torch.zeros(1, device=world.device)).wait()


def now(world: World) -> float:
    if world.device.type == "cuda":
        torch.cuda.synchronize(world.device)
    return time.perf_counter()


def mean(world: World, value: float) -> float:
    """Over all ranks. Collective over the world."""
    row = torch.tensor([value], dtype=torch.float64)
    return float(world.launch_gather(row, "calibration").wait().mean())
