"""Real Gloo ranks in the shape of nodes: the world that a run has, with Horovod not started."""

import torch.distributed as dist

from harness.parallel.aside import Aside
from harness.parallel.group import Group, Meters
from harness.parallel.topology import Layout, Topology
from harness.parallel.world import Links, World, _torch_groups
from tests.alone import CPU, meters


def world_of_ranks(
    ranks_per_node: int = 1, layout: Layout = "replicated", counted: Meters | None = None
) -> World:
    """Of a function that runs on ranks; they are as many as they are. Collective over them."""
    topology = Topology(dist.get_rank(), dist.get_world_size() // ranks_per_node, ranks_per_node)
    groups, aside = _torch_groups(topology), Aside(topology, CPU)
    return Links(topology, CPU, counted or meters(), (), groups, aside).world(layout)


def lossy_group(ranks_per_node: int = 1, counted: Meters | None = None) -> Group:
    """All ranks, able to carry any wire. Collective over them."""
    world = world_of_ranks(ranks_per_node, counted=counted)
    return world.reducing(world.everyone, "test")
