"""Lines for work beside the training thread, and process groups for their use alone."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from harness.parallel.line import Line
from harness.parallel.topology import Topology

TIMEOUT = timedelta(minutes=10)
"""Timeout of a collective that ranks enter together."""
DRIFT = timedelta(days=30)
"""Timeout of a collective that a rank may enter much later than another: nodes that exchange
nothing drift apart in time for a whole training, and so do threads that write to disks."""
Ranks = tuple[int, ...]


class Aside:
    """Lines and process groups by purpose, each made once, however many exchanges share the links.

    Two threads that launch collectives on one process group could do so in a different order on
    each rank, so each thread has its own group.
    """

    def __init__(self, topology: Topology, device: torch.device) -> None:
        self._topology = topology
        self._device = device
        self._groups: dict[tuple[Ranks, str], dist.ProcessGroup] = {}
        self._lines: dict[str, Line] = {}

    def process_group(
        self, ranks: Ranks, purpose: str, timeout: timedelta = TIMEOUT
    ) -> dist.ProcessGroup | None:
        """The process group of these ranks; None for one rank. The timeout is that of the first
        call. Collective over the world the first time."""
        if len(ranks) == 1:
            return None
        if (ranks, purpose) not in self._groups:
            self._make(ranks, purpose, timeout)
        return self._groups[ranks, purpose]

    def gather(self, purpose: str) -> Callable[[Any], list[Any]]:
        """A gather of picklable values over all ranks, for one thread, which may wait long for
        others. Collective over the world, and so is each call of it."""
        world = self._topology.world
        if len(world) == 1:
            return lambda value: [value]
        if (world, purpose) not in self._groups:
            self._make(world, purpose, DRIFT)
        group = self._groups[world, purpose]

        def gather(value: Any) -> list[Any]:
            found: list[Any] = [None] * len(world)
            dist.all_gather_object(found, value, group=group)
            return found

        return gather

    def _make(self, ranks: Ranks, purpose: str, timeout: timedelta) -> None:
        """Makes the groups of all ranks of this kind, on all ranks in the same order."""
        topology = self._topology
        kinds = topology.node_groups, topology.peer_groups, (topology.world,)
        kind = next(kind for kind in kinds if ranks in kind)
        for each in kind:
            self._groups[each, purpose] = dist.new_group(list(each), timeout=timeout)

    def line(self, purpose: str, host_blocks: bool = False) -> Line:
        """The line for a purpose; see `Line`. Does not communicate."""
        if purpose not in self._lines:
            self._lines[purpose] = Line(purpose, self._device, host_blocks)
        return self._lines[purpose]

    def quiet(self) -> None:
        """Waits until nothing is under way in these groups and lines. Collective over the world; no
        thread may use them meanwhile."""
        # The lines first: a step launches on its line's group, and a barrier that this thread puts
        # there before the step on one rank and after it on another never ends. A step may give
        # another line a step, and no chain of them is longer than the number of lines.
        for line in [*self._lines.values()] * len(self._lines):
            line.run(lambda: None).result()
        for (ranks, _), group in self._groups.items():
            if self._topology.rank in ranks:
                dist.barrier(group)  # Gloo's waits for what this rank has launched before

    def close(self) -> None:
        for line in self._lines.values():
            line.close()
