"""What exchanges launch beside training: lines, and process groups that are theirs alone."""

from datetime import timedelta

import torch
import torch.distributed as dist

from harness.parallel.line import Line
from harness.parallel.topology import Topology

TIMEOUT = timedelta(minutes=10)
"""Of a collective that ranks enter."""
Ranks = tuple[int, ...]


class Aside:
    """Made once for each purpose, however many exchanges share the links.

    Two threads that launch collectives on one process group would do so in another order on every
    rank: each thread has its own.
    """

    def __init__(self, topology: Topology, device: torch.device) -> None:
        self._topology = topology
        self._device = device
        self._groups: dict[tuple[Ranks, str], dist.ProcessGroup] = {}
        self._lines: dict[str, Line] = {}

    def process_group(self, ranks: Ranks, purpose: str) -> dist.ProcessGroup | None:
        """Of these ranks; None for one alone. Collective over the world, the first time."""
        if len(ranks) == 1:
            return None
        if (ranks, purpose) not in self._groups:
            self._make(ranks, purpose)
        return self._groups[ranks, purpose]

    def _make(self, ranks: Ranks, purpose: str) -> None:
        """All ranks make all groups of the kind, in one order."""
        topology = self._topology
        kinds = topology.node_groups, topology.peer_groups, (topology.world,)
        kind = next(kind for kind in kinds if ranks in kind)
        for each in kind:
            self._groups[each, purpose] = dist.new_group(list(each), timeout=TIMEOUT)

    def line(self, purpose: str, host_blocks: bool = False) -> Line:
        """See `Line`. Sends nothing."""
        if purpose not in self._lines:
            self._lines[purpose] = Line(purpose, self._device, host_blocks)
        return self._lines[purpose]

    def close(self) -> None:
        for line in self._lines.values():
            line.close()
