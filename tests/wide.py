"""One process in the place of a rank of a larger world: tensors of the real sizes, nothing sent."""

from typing import Any

from torch import Tensor

from harness.measure.phase import Phase
from harness.parallel.group import Group
from harness.parallel.ranks import Gathered
from harness.parallel.rehearsal import Rehearsal
from harness.parallel.replicas import Sum
from harness.parallel.topology import Layout, Topology
from harness.parallel.world import World
from tests.alone import CPU, meters


class WidePeers:
    """The same part on the other nodes."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.index = 0

    def launch_sum(self, buffer: Tensor, name: str) -> Sum:
        return _Done()


class _Done:
    def wait(self) -> None:
        return None


class WideWorld(World):
    """Rank 0's. Its gathers give back this rank's row alone."""

    def launch_gather(self, vector: Tensor, name: str) -> Gathered:
        return Gathered(None, vector.detach().reshape(1, -1).contiguous())

    def gather_objects(self, value: Any, name: str) -> list[Any]:
        return [value]


def wide_world(nodes: int, ranks_per_node: int, layout: Layout) -> World:
    topology, counted = Topology(0, nodes, ranks_per_node), meters()

    def group(size: int) -> Group:
        if size == 1:
            return Group((0,), 0, 1, None, counted, Phase.SLICE_WAIT)
        return Rehearsal(size, 0, counted)

    return WideWorld(
        topology=topology,
        device=CPU,
        meters=counted,
        node=group(ranks_per_node),
        slices=group(len(topology.slice_group(layout))),
        everyone=group(topology.world_size),
        replicas=group(len(topology.replica_group(layout))),
        peers=WidePeers(nodes),  # type: ignore[arg-type]
    )
