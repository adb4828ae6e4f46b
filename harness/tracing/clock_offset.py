"""How far the clocks of other machines are ahead of the first rank's, by pings."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

PINGS = 40
"""The quickest counts: one that was held up says little."""


@dataclass(frozen=True)
class ClockOffset:
    """Of one rank's clock against rank 0's; ranks of one machine share a clock."""

    ahead_seconds: float = 0.0
    within_seconds: float = 0.0
    """The most that `ahead_seconds` can be wrong by: half of the quickest round trip."""


def clock_offsets(
    rank: int, machines: Sequence[str], now: Callable[[], int] = time.time_ns
) -> list[ClockOffset]:
    """Of every rank, on rank 0; nothing on the others. `machines`: the host name of every rank.

    Collective over the world.
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
            ahead = int(message) - asked - quickest / 2
    return ClockOffset(ahead / 1e9, quickest / 2e9)


def _answer(now: Callable[[], int]) -> None:
    message = torch.zeros(1, dtype=torch.int64)
    for _ in range(PINGS):
        dist.recv(message, 0)
        message.fill_(now())
        dist.send(message, 0)
