"""The world of a run: ranks on nodes, and which ranks form which group."""

from dataclasses import dataclass
from typing import Literal

from harness.errors import UserError

Layout = Literal["replicated", "node", "world"]


@dataclass(frozen=True)
class Topology:
    """M nodes of G ranks each; ranks are numbered node by node."""

    rank: int
    nodes: int
    ranks_per_node: int

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank {self.rank} is not one of {self.nodes} x {self.ranks_per_node}")

    @property
    def world_size(self) -> int:
        return self.nodes * self.ranks_per_node

    @property
    def local_rank(self) -> int:
        return self.rank % self.ranks_per_node

    @property
    def node(self) -> int:
        return self.rank // self.ranks_per_node

    @property
    def node_groups(self) -> tuple[tuple[int, ...], ...]:
        """The ranks of each node."""
        return tuple(
            tuple(range(node * self.ranks_per_node, (node + 1) * self.ranks_per_node))
            for node in range(self.nodes)
        )

    @property
    def peer_groups(self) -> tuple[tuple[int, ...], ...]:
        """The ranks with the same local rank, one group per local rank."""
        return tuple(
            tuple(range(local, self.world_size, self.ranks_per_node))
            for local in range(self.ranks_per_node)
        )

    @property
    def world(self) -> tuple[int, ...]:
        return tuple(range(self.world_size))

    def slice_group(self, layout: Layout) -> tuple[int, ...]:
        """The ranks that together own every class exactly once."""
        if layout == "replicated":
            return (self.rank,)
        return self.node_groups[self.node] if layout == "node" else self.world

    def replica_group(self, layout: Layout) -> tuple[int, ...]:
        """The ranks that own the same slice as this one."""
        if layout == "replicated":
            return self.world
        return self.peer_groups[self.local_rank] if layout == "node" else (self.rank,)

    def nodes_of(self, ranks: tuple[int, ...]) -> int:
        """The number of nodes that these ranks are on."""
        return len({rank // self.ranks_per_node for rank in ranks})


def from_horovod(rank: int, size: int, local_size: int, cross_size: int) -> Topology:
    """The topology, from Horovod's numbers of one rank. Raises UserError if nodes differ in
    size."""
    if local_size * cross_size != size:
        raise UserError(
            f"all hosts need the same number of ranks, found {local_size} here on "
            f"{cross_size} hosts, but {size} ranks in all; name every host once in -H, with equal "
            f"slots"
        )
    return Topology(rank, cross_size, local_size)


def check_classes(topology: Topology, layout: Layout, num_classes: int) -> None:
    """Raises UserError if a rank of the slice group would own no class."""
    owners = len(topology.slice_group(layout))
    if num_classes < owners:
        raise UserError(
            f"classifier.layout={layout} needs at least {owners} classes for {owners} ranks, "
            f"but data.num_classes is {num_classes}; use replicated"
        )
