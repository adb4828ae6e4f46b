"""Which ranks share cores: how many a node has for itself, and turns in which nobody shares."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.parallel.world import World

Place = tuple[str, tuple[int, ...]]
"""A machine, and the cores that a rank may run on there, sorted."""


@dataclass(frozen=True)
class Cores:
    """Of one rank."""

    per_node: float | None
    """Cores that the first node's ranks have for themselves, wherever other nodes are; None: they
    compute on cards."""
    turn: int = 0
    turns: int = 1
    """In each of so many turns no more ranks work than there are cores for them."""


def cores_of(world: World) -> Cores:
    """Collective over the world."""
    if world.device.type == "cuda":
        return Cores(None)
    machines = world.gather_objects(Path("/proc/sys/kernel/random/boot_id").read_text(), "boots")
    allowed = world.gather_objects(tuple(sorted(os.sched_getaffinity(0))), "cores")
    places = list(zip(machines, allowed, strict=True))
    of_ranks = turns_of(places)
    per_node = own_cores(places, world.topology.ranks_per_node)
    return Cores(per_node, of_ranks[world.topology.rank], max(of_ranks) + 1)


def turns_of(places: Sequence[Place]) -> list[int]:
    """Of each rank: those that may run on the same cores take turns, as many at once as cores."""
    return [places[:rank].count(place) // len(place[1]) for rank, place in enumerate(places)]


def own_cores(places: Sequence[Place], ranks_per_node: int) -> float:
    """Of the first node: each core is divided evenly among the ranks that may run on it."""
    return sum(
        1 / len(cores) / _takers(places, machine, core)
        for machine, cores in places[:ranks_per_node]
        for core in cores
    )


def _takers(places: Sequence[Place], machine: str, core: int) -> float:
    """Ranks on a core, those that may run on others too as a part of one."""
    return sum(1 / len(cores) for where, cores in places if where == machine and core in cores)
