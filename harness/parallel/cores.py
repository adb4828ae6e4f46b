"""Which ranks share a machine and its cores: what each has to itself, and turns of not sharing."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.parallel.world import World

Place = tuple[str, tuple[int, ...]]
"""A machine, and the cores that a rank may run on there, sorted."""
ROUNDING = 1e-6


@dataclass(frozen=True)
class Cores:
    """Of one rank, whatever hosts its machine is divided into."""

    ranks_here: int
    """On this machine."""
    own: float
    """That this rank has for itself: a core is divided evenly among all that may run on it."""
    per_node: float
    """That the first node's ranks have."""
    turn: int
    turns: int
    """In each of so many turns no more ranks work than there are cores for them."""

    def threads(self, asked: int) -> int:
        """As asked; where that is 0, as many as it has cores."""
        return asked or max(1, int(self.own + ROUNDING))


def cores_of(world: World) -> Cores:
    """Collective over the world."""
    machines = world.gather_objects(Path("/proc/sys/kernel/random/boot_id").read_text(), "boots")
    allowed = world.gather_objects(tuple(sorted(os.sched_getaffinity(0))), "cores")
    places = list(zip(machines, allowed, strict=True))
    rank, turns = world.topology.rank, turns_of(places)
    return Cores(
        ranks_here=machines.count(machines[rank]),
        own=own_cores(places, rank),
        per_node=sum(own_cores(places, each) for each in range(world.topology.ranks_per_node)),
        turn=turns[rank],
        turns=max(turns) + 1,
    )


def turns_of(places: Sequence[Place]) -> list[int]:
    """Of each rank: those that may run on the same cores take turns, as many at once as cores."""
    return [places[:rank].count(place) // len(place[1]) for rank, place in enumerate(places)]


def own_cores(places: Sequence[Place], rank: int) -> float:
    machine, cores = places[rank]

    def takers(core: int) -> float:
        """Those that may run on others too as a part of one."""
        return sum(1 / len(of) for where, of in places if where == machine and core in of)

    return sum(1 / len(cores) / takers(core) for core in cores)
