"""Which ranks see the same folder: all hosts may share one, or each have its own."""

import os
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UserError
from harness.parallel.launcher import launched
from harness.parallel.topology import Topology
from harness.parallel.world import World
from harness.tracking.folders import holds_run
from harness.tracking.run_folder import CHECKPOINTS

LOOKS, APART_SECONDS = 10, 0.2
"""Looks for a file, and seconds between them: network file systems may show it a little late."""


@dataclass(frozen=True)
class Places:
    """The folders in which a run saves, one or several under the same name."""

    leaders: tuple[int, ...]
    """For each rank the lowest rank that sees the same folder."""
    note: str = ""
    """One line for the user if hosts do not share the folder."""

    @classmethod
    def shared(cls, ranks: int) -> "Places":
        return cls((0,) * ranks)

    def leads(self, rank: int) -> bool:
        """Whether the rank writes what a folder has once."""
        return self.leaders[rank] == rank

    def writes_slice(self, rank: int, owners: int) -> bool:
        """Whether the rank is the lowest of its folder that owns its slice, of `owners` slices."""
        place = self.leaders[rank]
        before = range(rank % owners, rank, owners)
        return all(self.leaders[each] != place for each in before)

    def leading_nodes(self, topology: Topology) -> set[int]:
        return {leader // topology.ranks_per_node for leader in self.leaders}


def find_places(folder: Path, world: World, goes_on: bool = False) -> Places:
    """Finds out which ranks see the same `folder`, and makes it where it is missing.

    The first rank of each node makes a file in it, and all ranks look for these. Raises UserError
    if it cannot be made, or has checkpoints, unless they are of this run, which `goes_on`.
    Collective over the world.
    """
    topology = world.topology
    if topology.nodes == 1:
        return Places.shared(topology.world_size)
    token = world.broadcast(uuid.uuid4().hex, "folder token")
    own = folder / f".{token}-{topology.rank}"
    with world.together():
        if topology.local_rank == 0:
            _make(own)
    with world.together():
        if not goes_on and os.path.exists(folder / CHECKPOINTS):
            raise holds_run(folder)
    first_of_nodes = [ranks[0] for ranks in topology.node_groups]
    leader = _lowest_seen([(rank, folder / f".{token}-{rank}") for rank in first_of_nodes])
    seen = world.gather_objects((leader, launched().host), "folder leaders")
    if topology.local_rank == 0:
        own.unlink(missing_ok=True)
    leaders = tuple(leader for leader, _ in seen)
    apart = [seen[leader][1] for leader in sorted(set(leaders))]
    return Places(leaders, _note(folder, apart) if len(apart) > 1 else "")


def _note(folder: Path, hosts: Sequence[str]) -> str:
    return (
        f"{', '.join(hosts)} do not share {folder}: each keeps what its ranks own of every "
        f"checkpoint; resume on these hosts, or copy their checkpoints into one folder"
    )


def _make(token: Path) -> None:
    try:
        token.parent.mkdir(parents=True, exist_ok=True)
        token.touch()
    except OSError as error:
        raise UserError(
            f"cannot write in {token.parent} ({error.strerror}); set tracking.folder or --folder "
            f"to another folder"
        ) from error


def _lowest_seen(tokens: Sequence[tuple[int, Path]]) -> int:
    """The lowest rank whose file appears; a host without a common folder sees its own alone."""
    for _ in range(LOOKS):
        if tokens[0][1].exists():
            break
        time.sleep(APART_SECONDS)
    return next(rank for rank, path in tokens if path.exists())
