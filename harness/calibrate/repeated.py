"""How long an operation takes when all ranks do it at once: from one barrier of all to the next."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from harness.calibrate.result import Point
from harness.measure.clock import now
from harness.parallel.world import World

GOLDEN = 0.618
"""The golden ratio's fraction: its multiples, less their whole part, fill 0 to 1 evenly."""
BLOCKS = 5
"""Blocks of repetitions over which the median is taken."""


@dataclass(frozen=True)
class Repeat:
    """How an operation is repeated."""

    rest: float = 0.0
    """Seconds before each, more or less, which are not counted."""
    least: int = 1
    """Repetitions in a row. Before several comes one that is not counted: it spends what a link's
    token bucket had saved up."""
    best: bool = False
    """The fastest block counts in place of the median: for transfers, which other work on the
    machine disturbs without showing in the processor time."""


ONCE = Repeat()


def timed(
    world: World,
    operation: Callable[[], object],
    size: float,
    seconds: float,
    repeat: Repeat = ONCE,
) -> Point:
    """Repeats `operation` for about `seconds` in all, equally often on all ranks.

    Collective over the world.
    """
    once = _block(world, operation, 1, repeat.rest)
    # Every rank divides by the mean over ranks, so that all of them repeat it equally often.
    each = mean(world, once[0]) + repeat.rest + 1e-9
    repetitions = max(repeat.least, round(seconds / BLOCKS / each))
    spends = repeat.least > 1
    blocks = [_block(world, operation, repetitions, repeat.rest, spends) for _ in range(BLOCKS)]
    pick = min if repeat.best else statistics.median
    wall, cpu = (pick(column) for column in zip(*blocks, strict=True))
    return Point(size=size, seconds=mean(world, wall), cpu_seconds=mean(world, cpu))


def _block(
    world: World,
    operation: Callable[[], object],
    repetitions: int,
    rest: float,
    spends_first: bool = False,
) -> tuple[float, float]:
    """Wall and processor seconds of one repetition."""
    barrier(world)
    if spends_first:
        operation()
    wall = cpu = 0.0
    for number in range(repetitions):
        if rest:
            # Rests of 0.5 to 1.5 times the mean: Horovod looks for work at a fixed beat, and equal
            # rests could meet it at one and the same point every time.
            time.sleep(rest * (0.5 + number * GOLDEN % 1))
            barrier(world)
        started, busy = now(world.device), time.process_time()
        operation()
        wall += now(world.device) - started
        cpu += time.process_time() - busy
    return wall / repetitions, cpu / repetitions


def barrier(world: World) -> None:
    """Collective over the world."""
    world.everyone.launch_sum(torch.zeros(1, device=world.device)).wait()


def mean(world: World, value: float) -> float:
    """Over all ranks. Collective over the world."""
    row = torch.tensor([value], dtype=torch.float64)
    return float(world.launch_gather(row, "calibration").wait().mean())
