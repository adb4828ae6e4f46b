"""Which ranks share a machine: each one's share of the cores, and turns that avoid sharing."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from harness.parallel.world import World

Place = tuple[str, tuple[int, ...]]
"""A machine, and the sorted cores that a rank may run on there."""
ROUNDING = 1e-6


@dataclass(frozen=True)
class Cores:
    """One rank's share of its machine's cores, however the machine is divided into hosts."""

    ranks_here: int
    """Number of ranks on this machine."""
    own: float
    """This rank's cores: a core is divided evenly among all ranks that may run on it."""
    per_node: float
    """The cores of the first node's ranks."""
    turn: int
    turns: int
    """Number of turns. In each turn no more ranks work than there are cores for them."""

    def threads(self, asked: int) -> int:
        """The number of threads: `asked`, or if that is 0 the number of this rank's cores."""
        return asked or whole_cores(self.own)


def whole_cores(cores: float) -> int:
    """The whole cores of a share, at least one."""
    return max(1, int(cores + ROUNDING))


def cores_of(world: World) -> Cores:
    """Each rank's cores, found from all ranks of its machine. Collective over the world."""
    machines = world.machines()
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
    """The turn of each rank: ranks that may run on the same cores take turns, one rank per core at
    a time."""
    return [places[:rank].count(place) // len(place[1]) for rank, place in enumerate(places)]


def own_cores(places: Sequence[Place], rank: int) -> float:
    """A rank's share of its machine's cores."""
    # A rank on c cores demands 1/c of each. A core is shared in proportion to these demands.
    machine, cores = places[rank]

    def takers(core: int) -> float:
        """Total demand for a core."""
        return sum(1 / len(of) for where, of in places if where == machine and core in of)

    return sum(1 / len(cores) / takers(core) for core in cores)
