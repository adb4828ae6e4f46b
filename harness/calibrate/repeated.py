"""How long an operation takes when all ranks run it at the same time, started by a barrier."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from harness.calibrate.result import Point
from harness.measure.clock import now
from harness.parallel.world import World

GOLDEN = 0.618
"""Fraction of the golden ratio: the fractional parts of its multiples fill 0 to 1 evenly."""
BLOCKS = 5
"""Blocks of repetitions over which the median is taken."""


@dataclass(frozen=True)
class Repeat:
    """How an operation is repeated."""

    rest: float = 0.0
    """Mean pause in seconds before each repetition, which is not counted."""
    least: int = 1
    """Least repetitions in a row. If there are several, one that is not counted comes first: it
    empties the token bucket that a link has filled meanwhile."""
    best: bool = False
    """Whether the fastest block counts instead of the median. This is for transfers: other work on
    the machine slows them down without showing in the processor time."""


ONCE = Repeat()


def timed(
    world: World,
    operation: Callable[[], object],
    size: float,
    seconds: float,
    repeat: Repeat = ONCE,
) -> Point:
    """Repeats `operation` for about `seconds` in all, the same number of times on all ranks.

    Collective over the world.
    """
    once = _block(world, operation, 1, repeat.rest)
    # Repetitions come from the mean over ranks: they must be the same on all, or barriers hang.
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
    """Mean wall and processor seconds of one repetition."""
    barrier(world)
    if spends_first:
        operation()
    wall = cpu = 0.0
    for number in range(repetitions):
        if rest:
            # Pauses of 0.5 to 1.5 times the mean: Horovod looks for work once per cycle, and equal
            # pauses could hit the same point of the cycle every time.
            time.sleep(rest * (0.5 + number * GOLDEN % 1))
            barrier(world)
        started, busy = now(world.device), time.process_time()
        operation()
        wall += now(world.device) - started
        cpu += time.process_time() - busy
    return wall / repetitions, cpu / repetitions


def barrier(world: World) -> None:
    """Returns once all ranks have called it. Collective over the world."""
    world.everyone.launch_sum(torch.zeros(1, device=world.device)).wait()


def mean(world: World, value: float) -> float:
    """Mean of a value over all ranks. Collective over the world."""
    row = torch.tensor([value], dtype=torch.float64)
    return float(world.launch_gather(row, "calibration").wait().mean())
