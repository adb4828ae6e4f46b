"""Does each card or core multiply matrices as fast as the others, all at the same time?"""

import time
from collections.abc import Sequence
from statistics import median

import torch

from harness.doctor.finding import Facts, Finding, Level, limit_lines, listed, median_of_rest
from harness.doctor.seat import Seat
from harness.measure.clock import now

CHECK = "compute"
TOLERANCE = 0.2
"""Share by which a rank may be slower than the median of the others."""
CROWDED_TOLERANCE = 0.5
"""Share by which a rank may be slower with only a warning if ranks outnumber the cores, since these
are then not divided evenly."""
SIZES = {"cpu": 256, "cuda": 4096}
"""Side of the square matrices."""
AT_ONCE = {"cpu": 1, "cuda": 16}
"""Products that are launched before one is waited for, so that a card is never idle in between."""
BUSY = 0.9
"""Least share of its cores that an unhindered process gets; with less, something kept it from
them."""


class Speed(Facts):
    """Speed of one rank's matrix products."""

    device: str
    """The card's name, or cpu."""
    flop_per_second: float
    cpu_share: float | None
    """Processor time / (wall time x threads); None on a card."""


def measure_speed(
    device: torch.device, seconds: float, dtype: torch.dtype = torch.float32
) -> Speed:
    """Measures for `seconds`, which must be several periods of a processor limit (0.1 s).

    A shorter measurement would see only the burst that a limit lets pass.
    """
    size = SIZES[device.type]
    left, right = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    result = left @ right
    began, busy, products = now(device), time.process_time(), 0
    while (elapsed := now(device) - began) < seconds or not products:
        for _ in range(AT_ONCE[device.type]):
            torch.mm(left, right, out=result)
            products += 1
    share = (time.process_time() - busy) / elapsed / torch.get_num_threads()
    on_card = device.type == "cuda"
    return Speed(
        device=torch.cuda.get_device_name(device) if on_card else "cpu",
        flop_per_second=products * 2 * size**3 / elapsed,
        cpu_share=None if on_card else share,
    )


def best_speeds(rounds: Sequence[Sequence[Speed]]) -> list[Speed]:
    """The best speed of each rank: disturbances only make a rank slower."""
    by_rank = zip(*rounds, strict=True)
    return [max(speeds, key=lambda speed: speed.flop_per_second) for speeds in by_rank]


def slow_ranks(speeds: Sequence[Speed]) -> list[int]:
    """Ranks below 1 - TOLERANCE of the median of the others; of a single rank, none."""
    rates = [speed.flop_per_second for speed in speeds]
    if len(rates) < 2:
        return []
    floor = 1 - TOLERANCE
    return [rank for rank, rate in enumerate(rates) if rate < floor * median_of_rest(rates, rank)]


def judge_compute(seats: Sequence[Seat], speeds: Sequence[Speed]) -> list[Finding]:
    """One fault for each host with slow ranks, else one finding with the range of speeds."""
    rates = [speed.flop_per_second for speed in speeds]
    slow = slow_ranks(speeds)
    hosts = dict.fromkeys(seats[rank].host for rank in slow)
    faults = [
        _slow_on(host, [rank for rank in slow if seats[rank].host == host], speeds)
        for host in hosts
    ]
    device = speeds[0].device
    well = f"{_rate(min(rates))} to {_rate(max(rates))} on each of {len(rates)} ranks, {device}"
    well += ", which share cores" if _crowded(speeds) else ""
    if len(rates) == 1:
        well = f"{_rate(rates[0])} on the only rank, {device}: nothing to compare it with"
    return limit_lines(faults, Finding(check=CHECK, level="ok", found=well))


def _slow_on(host: str, ranks: Sequence[int], speeds: Sequence[Speed]) -> Finding:
    rates = [speed.flop_per_second for speed in speeds]
    slowest = min(ranks, key=lambda rank: rates[rank])
    usual = median_of_rest(rates, slowest)
    speed = speeds[slowest]
    who = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {listed(ranks)}"
    found = (
        f"{who} on {host} ({speed.device}): {_rate(rates[slowest])}, "
        f"{rates[slowest] / usual:.0%} of the others' median of {_rate(usual)}"
    )
    if speed.cpu_share is None:
        advice = f"check the card's clock, heat and power, and who else uses it, on {host}"
    elif speed.cpu_share < BUSY:
        found += f"; it got {speed.cpu_share:.0%} of its cores"
        advice = f"check {host} for a limit on the processor and for other load"
    else:
        advice = f"check the processor's clock on {host}, or leave {host} out of the run"
    harmless = _crowded(speeds) and rates[slowest] >= (1 - CROWDED_TOLERANCE) * usual
    level: Level = "warn" if harmless else "fail"
    return Finding(check=CHECK, level=level, found=found, advice=advice)


def _crowded(speeds: Sequence[Speed]) -> bool:
    """Whether most ranks have to wait for a core."""
    shares = [speed.cpu_share for speed in speeds if speed.cpu_share is not None]
    return len(shares) > 1 and median(shares) < BUSY


def _rate(flop_per_second: float) -> str:
    if flop_per_second >= 1e12:
        return f"{flop_per_second / 1e12:.1f} TFLOP/s"
    return f"{flop_per_second / 1e9:.1f} GFLOP/s"
