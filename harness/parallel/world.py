"""Opens and closes Horovod and torch.distributed side by side, and hands out their groups."""

import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import horovod.torch as hvd
import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import TCPStore

from harness.errors import SaidByAnotherRank, UserError
from harness.measure.phase import Phase
from harness.parallel.group import Group, Meters, Pending
from harness.parallel.replicas import ReplicaGroup, finish
from harness.parallel.topology import Layout, Topology, from_horovod

TIMEOUT = timedelta(minutes=10)


def launched_topology() -> Topology:
    """The topology that the launcher set for this process, before anything is started.

    Without a launcher: one rank. Raises UserError where hosts differ in size; one rank of the first
    host that differs says so, the others leave without a word.
    """

    def number(name: str, default: int) -> int:
        return int(os.environ.get(f"HOROVOD_{name}", default))

    rank, size, hosts = number("RANK", 0), number("SIZE", 1), number("CROSS_SIZE", 1)
    local_rank, local_size = number("LOCAL_RANK", 0), number("LOCAL_SIZE", 1)
    try:
        topology = from_horovod(rank, size, local_size, hosts)
        if topology.local_rank != local_rank:
            raise UserError(
                f"ranks must be numbered host by host, rank {topology.rank} is number "
                f"{local_rank} of its host; name every host once in -H"
            )
    except UserError:
        # A rank knows its own host only; that all before it had an even share shows in its number.
        even_before = rank * hosts == number("CROSS_RANK", 0) * size
        if local_rank == 0 and (even_before or local_size * hosts == size):
            raise
        raise SaidByAnotherRank from None
    return topology


def rank_device(choice: str, local_rank: int) -> torch.device:
    """`auto`, `cpu` or `cuda` -> this rank's device; one card per local rank."""
    if choice == "cpu" or (choice == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    cards = torch.cuda.device_count()
    if local_rank >= cards:
        raise UserError(
            f"train.device={choice} needs a card per rank, local rank {local_rank} found "
            f"{cards}; start fewer ranks per host or set train.device=cpu"
        )
    return torch.device("cuda", local_rank)


class World:
    """All ranks of a run, the groups among them, and the small exchanges outside the windows."""

    def __init__(
        self,
        topology: Topology,
        device: torch.device,
        meters: Meters,
        node: Group,
        slices: Group,
        everyone: Group,
        replicas: Group,
        peers: ReplicaGroup,
    ) -> None:
        self.topology = topology
        self.device = device
        self.meters = meters
        self.node = node
        """This node's ranks: backbone gradients meet here."""
        self.slices = slices
        """The slice group: features meet here."""
        self.everyone = everyone
        """All ranks: synchronous averages of what all share."""
        self.replicas = replicas
        """The ranks that own the same slice: synchronous averages of it."""
        self.peers = peers
        """The ranks of the same local rank, through Horovod: what is averaged late."""

    def hosts(self) -> list[str]:
        """The host name of every node. Collective over the world."""
        return self.machines()[:: self.topology.ranks_per_node]

    def machines(self) -> list[str]:
        """The host name of every rank. Collective over the world."""
        return self.gather_objects(socket.gethostname(), "machines")

    @property
    def is_first(self) -> bool:
        return self.topology.rank == 0

    def horovod_build(self) -> dict[str, bool]:
        """What Horovod was built with."""
        return {
            "gloo": bool(hvd.gloo_built()),
            "mpi": bool(hvd.mpi_built()),
            "nccl": bool(hvd.nccl_built()),
        }

    def raise_together(self, problem: UserError | None) -> None:
        """Every rank leaves if any has a problem; the first that has one says it.

        Collective over the world.
        """
        flag = torch.tensor([0.0 if problem is None else 1.0])
        having = self.launch_gather(flag, "problems").wait().flatten().nonzero().flatten()
        if not len(having):
            return
        if problem is not None and self.topology.rank == int(having[0]):
            raise problem
        raise SaidByAnotherRank

    @contextmanager
    def together(self) -> Iterator[None]:
        """A UserError of any rank in this block ends all of them. Collective over the world."""
        problem = None
        try:
            yield
        except UserError as error:
            problem = error
        self.raise_together(problem)

    def average(self, tensor: Tensor) -> Tensor:
        """Mean over all ranks, as a new tensor. Collective over the world."""
        return self.everyone.launch_average(tensor.detach().clone()).wait()

    def launch_sum(self, vector: Tensor) -> Pending:
        """Starts the sum of a few numbers on the host over all ranks, in place.

        Bookkeeping: its bytes are no part of the traffic. Collective over the world.
        """
        group, waiting = self.everyone.process_group, self.meters.clock.phase(Phase.EXCHANGE_WAIT)
        work = None if group is None else dist.all_reduce(vector, group=group, async_op=True)
        return Pending(work, vector, waiting)

    def launch_gather(self, vector: Tensor, name: str) -> "Gathered":
        """Starts [n] of each rank -> [world, n] on all. Collective over the world."""
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
    """Rows of all ranks, under way."""

    def __init__(self, handle: int | None, row: Tensor) -> None:
        self._handle = handle
        self._row = row

    def wait(self) -> Tensor:
        return self._row if self._handle is None else finish(self._handle)


@contextmanager
def open_links(topology: Topology, device: torch.device, meters: Meters) -> Iterator["Links"]:
    """Horovod and torch.distributed, opened, and closed on the way out, also after an error.

    A rank that leaves with an error shuts Horovod down, so that the others raise instead of
    waiting. Collective over the world.
    """
    sets = [hvd.ProcessSet(list(ranks)) for ranks in _peer_sets(topology)]
    if device.type == "cuda":
        torch.cuda.set_device(device)
        one_precision()
    hvd.init(process_sets=sets)
    if hvd.size() != topology.world_size:
        raise UserError(
            f"Horovod runs {hvd.size()} ranks, its launcher told this one of "
            f"{topology.world_size}; start with horovodrun --gloo"
        )
    staging = ThreadPoolExecutor(1, "staging") if device.type == "cuda" else None
    try:
        if topology.world_size > 1:
            _open_torch(topology, device)
        yield Links(topology, device, meters, sets, _torch_groups(topology), staging)
    finally:
        if staging is not None:
            staging.shutdown(wait=False, cancel_futures=True)
        hvd.shutdown()
        if dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def open_world(
    topology: Topology, layout: Layout, device: torch.device, meters: Meters
) -> Iterator[World]:
    """The world of this process for one layout; see `open_links`. Collective over the world."""
    with open_links(topology, device, meters) as links:
        yield links.world(layout)


def one_precision() -> None:
    """A card's convolutions round float32 as its matrix products do.

    torch's default rounds the first to TF32 and not the second, and no share of a plain product
    could be told. `TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1` has both in TF32.
    """
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32


@dataclass(frozen=True)
class Links:
    """What carries bytes between the ranks, whatever the layout."""

    topology: Topology
    device: torch.device
    meters: Meters
    process_sets: list[hvd.ProcessSet]
    process_groups: dict[tuple[int, ...], dist.ProcessGroup | None]
    staging: ThreadPoolExecutor | None

    def world(self, layout: Layout, user: str = "") -> World:
        """The groups that a layout needs, for one of several users. Sends nothing."""
        topology = self.topology
        peers = topology.peer_groups[topology.local_rank]
        sets = self.process_sets
        peer_set = sets[topology.local_rank] if sets else hvd.global_process_set
        return World(
            topology=topology,
            device=self.device,
            meters=self.meters,
            node=self._group(topology.node_groups[topology.node], Phase.NODE_WAIT),
            slices=self._group(topology.slice_group(layout), Phase.SLICE_WAIT),
            everyone=self._group(topology.world, Phase.EXCHANGE_WAIT),
            replicas=self._group(topology.replica_group(layout), Phase.EXCHANGE_WAIT),
            peers=ReplicaGroup(
                topology.nodes,
                topology.node,
                peer_set if len(peers) > 1 else None,
                self.meters,
                self.staging,
                user,
            ),
        )

    def _group(self, ranks: tuple[int, ...], phase: Phase) -> Group:
        nodes = self.topology.nodes_of(ranks)
        process_group = self.process_groups[ranks] if len(ranks) > 1 else None
        return Group(ranks, self.topology.rank, nodes, process_group, self.meters, phase)


def _peer_sets(topology: Topology) -> tuple[tuple[int, ...], ...]:
    # A process set equal to the world, or of one rank, is not one for Horovod to keep.
    proper = 1 < topology.nodes < topology.world_size
    return topology.peer_groups if proper else ()


def _open_torch(topology: Topology, device: torch.device) -> None:
    if "HOROVOD_GLOO_IFACE" in os.environ:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", os.environ["HOROVOD_GLOO_IFACE"])
    host = _own_address()
    first = topology.rank == 0
    store = TCPStore(host, 0, is_master=True, wait_for_workers=False) if first else None
    address = (host, store.port) if store is not None else None
    host, port = hvd.broadcast_object(address, root_rank=0, name="store address")
    if store is None:
        store = TCPStore(host, port, is_master=False, timeout=TIMEOUT)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend, store=store, rank=topology.rank, world_size=topology.world_size, timeout=TIMEOUT
    )


def _own_address() -> str:
    """The address of this host on the way to Horovod's rendezvous, which all hosts can reach."""
    rendezvous = os.environ.get("HOROVOD_GLOO_RENDEZVOUS_ADDR", "127.0.0.1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((rendezvous, 9))
        return cast(str, probe.getsockname()[0])


def _torch_groups(topology: Topology) -> dict[tuple[int, ...], dist.ProcessGroup | None]:
    """Process groups by their ranks; each rank makes all of them, in one order."""
    groups: dict[tuple[int, ...], dist.ProcessGroup | None] = {}
    if topology.world_size > 1:
        groups[topology.world] = dist.group.WORLD
    for ranks in topology.node_groups + topology.peer_groups:
        if 1 < len(ranks) < topology.world_size:
            groups[ranks] = dist.new_group(list(ranks), timeout=TIMEOUT)
    return groups
