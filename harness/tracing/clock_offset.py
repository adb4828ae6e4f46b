"""Measures by pings how far the clocks of other machines are ahead of the first rank's."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

PINGS = 40
"""Pings of each machine; the one with the shortest round trip counts, as others were delayed."""


@dataclass(frozen=True)
class ClockOffset:
    """Offset of a rank's clock from rank 0's; ranks on one machine share a clock."""

    ahead_seconds: float = 0.0
    within_seconds: float = 0.0
    """Largest error of `ahead_seconds`: half the shortest round trip."""


def clock_offsets(
    rank: int, machines: Sequence[str], now: Callable[[], int] = time.time_ns
) -> list[ClockOffset]:
    """The offset of every rank, on rank 0; empty on the others. Collective over the world.

    `machines`: the machine of every rank, as `Ranks.machines` gives it.
    """
    found = {machines[0]: ClockOffset()}
    for machine in dict.fromkeys(machines):
        answering = machines.index(machine)
        if not answering:
            continue
        if rank == 0:
            found[machine] = _ask(answering, now)
        elif rank == answering:
            _answer(now)
    return [found[machine] for machine in machines] if rank == 0 else []


def _ask(other: int, now: Callable[[], int]) -> ClockOffset:
    message, quickest, ahead = torch.zeros(1, dtype=torch.int64), 1 << 62, 0.0
    for _ in range(PINGS):
        asked = now()
        dist.send(message, other)
        dist.recv(message, other)
        heard = now()
        if heard - asked < quickest:
            quickest = heard - asked
            # The other clock is read between `asked` and `heard`: their middle is at most half a
            # round trip from it.
            ahead = int(message) - asked - quickest / 2
    return ClockOffset(ahead / 1e9, quickest / 2e9)


def _answer(now: Callable[[], int]) -> None:
    message = torch.zeros(1, dtype=torch.int64)
    for _ in range(PINGS):
        dist.recv(message, 0)
        message.fill_(now())
        dist.send(message, 0)
