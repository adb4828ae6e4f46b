"""All ranks of a launch, through Horovod, before they have devices."""

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import horovod.torch as hvd
import torch
import torch.distributed as dist
from torch import Tensor

from harness.errors import ReportedByAnotherRank, UserError
from harness.parallel.launcher import launched
from harness.parallel.machine import boot_id
from harness.parallel.peers import finish
from harness.parallel.topology import Topology, from_horovod


def launched_topology() -> Topology:
    """The topology that the launcher set for this process, before anything is started.

    Without a launcher there is one rank. Raises UserError if hosts differ in size: one rank of the
    first host that differs reports it, the others exit silently.
    """
    place = launched()
    try:
        topology = from_horovod(place.rank, place.size, place.local_size, place.cross_size)
        if topology.local_rank != place.local_rank:
            raise UserError(
                f"ranks must be numbered host by host, but rank {topology.rank} is number "
                f"{place.local_rank} of its host; name every host once in -H"
            )
    except UserError as error:
        # A rank knows only its own host. Its number shows whether all hosts before it have an even
        # share: rank / size = cross_rank / cross_size.
        even_before = place.rank * place.cross_size == place.cross_rank * place.size
        even_numbers = place.local_size * place.cross_size == place.size
        if place.rank == 0 or (place.local_rank == 0 and (even_before or even_numbers)):
            raise
        raise ReportedByAnotherRank(str(error)) from None
    return topology


@dataclass(frozen=True, eq=False)
class Ranks:
    """Small collectives outside the windows, through Horovod and host memory."""

    topology: Topology
    process_sets: Sequence[hvd.ProcessSet] = ()
    """Horovod's process sets of the ranks with the same local rank."""

    def hosts(self) -> list[str]:
        """The host name of every node. Collective over the world."""
        return self.gather_objects(socket.gethostname(), "hosts")[:: self.topology.ranks_per_node]

    def machines(self) -> list[str]:
        """The machine of every rank, equal for ranks that share a clock and cores; host names may
        be equal by mistake. Collective over the world."""
        return self.gather_objects(boot_id() or socket.gethostname(), "machines")

    @property
    def is_first(self) -> bool:
        return self.topology.rank == 0

    def horovod_build(self) -> dict[str, bool]:
        """The libraries that Horovod was built with."""
        return {
            "gloo": bool(hvd.gloo_built()),
            "mpi": bool(hvd.mpi_built()),
            "nccl": bool(hvd.nccl_built()),
        }

    def raise_together(self, problem: UserError | None) -> None:
        """Makes every rank exit if any has a problem; the first rank that has one reports it.

        Collective over the world.
        """
        flag = torch.tensor([0.0 if problem is None else 1.0])
        having = self.launch_gather(flag, "problems").wait().flatten().nonzero().flatten()
        if not len(having):
            return
        if problem is not None and self.topology.rank == int(having[0]):
            raise problem
        raise ReportedByAnotherRank

    @contextmanager
    def together(self) -> Iterator[None]:
        """Inside the block, a UserError on any rank ends all ranks; blocks may be nested.

        Collective over the world.
        """
        problem, inner = None, None
        try:
            yield
        except UserError as error:
            problem = error
        except ReportedByAnotherRank as error:
            inner = error  # raised by a nested block; the rank with the cause arrives here too
        self.raise_together(problem)
        if inner is not None:
            raise inner

    def launch_gather(self, vector: Tensor, name: str) -> "Gathered":
        """Starts gathering each rank's vector [n] into [world, n] on all. Collective over the
        world."""
        row = vector.detach().reshape(1, -1).contiguous()
        if self.topology.world_size == 1:
            return Gathered(None, row)
        return Gathered(hvd.allgather_async(row, name=name), row)

    def gather_objects(self, value: Any, name: str) -> list[Any]:
        """The picklable `value` of every rank on all of them. Collective over the world."""
        if self.topology.world_size == 1:
            return [value]
        return list(hvd.allgather_object(value, name=name))

    def broadcast(self, value: Any, name: str) -> Any:
        """Rank 0's picklable `value` on all ranks. Collective over the world."""
        if self.topology.world_size == 1:
            return value
        return hvd.broadcast_object(value, root_rank=0, name=name)


class Gathered:
    """A gather of all ranks' rows in flight."""

    def __init__(self, handle: int | None, row: Tensor) -> None:
        self._handle = handle
        self._row = row

    def wait(self) -> Tensor:
        return self._row if self._handle is None else finish(self._handle)


@contextmanager
def open_ranks(topology: Topology) -> Iterator[Ranks]:
    """Opens Horovod; on exit closes it and everything opened on it.

    A rank that exits with an error shuts Horovod down, so that the others raise instead of waiting.
    With a card it leaves torch's groups open for `leave` to end with the process. Collective over
    the world.
    """
    sets = [hvd.ProcessSet(list(ranks)) for ranks in _peer_sets(topology)]
    hvd.init(process_sets=sets)
    failed = True
    try:
        if hvd.size() != topology.world_size:
            raise UserError(
                f"Horovod initialised with {hvd.size()} ranks, but HOROVOD_SIZE is "
                f"{topology.world_size}; start with horovodrun --gloo"
            )
        yield Ranks(topology, sets)
        failed = False
    finally:
        hvd.shutdown()
        # NCCL closes a group only with the other ranks, which may not come.
        waits = dist.is_initialized() and "nccl" in dist.get_backend_config()
        if dist.is_initialized() and not (failed and waits):
            dist.destroy_process_group()


def _peer_sets(topology: Topology) -> tuple[tuple[int, ...], ...]:
    # Horovod keeps no process set that equals the world or has one rank.
    proper = 1 < topology.nodes < topology.world_size
    return topology.peer_groups if proper else ()
