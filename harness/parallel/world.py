"""Opens and closes Horovod and torch.distributed side by side, and provides their groups."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import horovod.torch as hvd
import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import TCPStore

from harness.measure.phase import Phase
from harness.parallel.aside import DRIFT, TIMEOUT, Aside
from harness.parallel.cards import place, place_again, view_of
from harness.parallel.group import Behind, Group, Hops, Meters
from harness.parallel.launcher import launched
from harness.parallel.line import Line
from harness.parallel.machine import address_towards
from harness.parallel.peers import Lines, PeerGroup
from harness.parallel.pending import Pending
from harness.parallel.ranks import Ranks, open_ranks
from harness.parallel.topology import Layout, Topology


@dataclass(frozen=True, eq=False, kw_only=True)
class World(Ranks):
    """All ranks of a run on their devices, and the groups among them."""

    device: torch.device
    meters: Meters
    node: Group
    """The ranks of this node; backbone gradients are averaged here."""
    slices: Group
    """The slice group; features are gathered here."""
    everyone: Group
    """All ranks; for synchronous averages of shared parameters."""
    replicas: Group
    """The ranks that own the same slice; for its synchronous averages."""
    peers: PeerGroup
    """The ranks with the same local rank, through Horovod; for late averages."""
    across: Group
    """The same ranks, through torch.distributed; for averages that every window waits for."""
    aside: Aside
    """Lines and groups that exchanges use beside the training thread."""

    @classmethod
    def alone(cls, device: torch.device, meters: Meters, group: Group) -> "World":
        """The world of a single rank, which needs neither Horovod nor torch.distributed.

        `group`, of this rank alone, is every group, so it fits every layout.
        """
        topology = Topology(0, 1, 1)
        return cls(
            topology=topology,
            device=device,
            meters=meters,
            node=group,
            slices=group,
            everyone=group,
            replicas=group,
            peers=PeerGroup(1, 0, None, meters),
            across=group,
            aside=Aside(topology, device),
        )

    def line(self, purpose: str) -> Line:
        """The line for one purpose of this rank, which runs steps beside training."""
        return self.aside.line(purpose)

    def gathers(self, purpose: str) -> Callable[[Any], list[Any]]:
        """`gather_objects` for one thread beside training; see `Aside.gather`. Collective over the
        world."""
        return self.aside.gather(purpose)

    def beside(
        self,
        ranks: tuple[int, ...],
        purpose: str,
        wait_phase: Phase | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> Group:
        """A group of a node's ranks, peers or all ranks, used for one purpose by one thread.

        Its waits are in no phase of the clock unless one is given. Collective over the world.
        """
        process_group = self.aside.process_group(ranks, purpose, timeout)
        topology = self.topology
        nodes = topology.nodes_of(ranks)
        return Group(ranks, topology.rank, nodes, process_group, self.meters, wait_phase)

    def late(self) -> Group:
        """The peers, through a process group of torch.distributed for late averages alone, which
        nodes enter up to `delay` windows apart. Collective over the world."""
        return self.beside(self.across.ranks, "late", Phase.EXCHANGE_WAIT, DRIFT)

    def reducing(self, group: Group, purpose: str, late: bool = False) -> Group:
        """The group, with a line and a process group for the second step of its `launch_reduce`.

        `purpose` names the group's use; `late`: nodes enter it windows apart. Collective over the
        world.
        """
        behind, timeout = f"{purpose} behind", DRIFT if late else TIMEOUT
        second = self.beside(group.ranks, behind, timeout=timeout)
        return group.followed(Behind(self.line(behind), second))

    def average(self, tensor: Tensor) -> Tensor:
        """The mean over all ranks, as a new tensor. Collective over the world."""
        return self.everyone.launch_average(tensor.detach().clone()).wait()

    def launch_sum(self, vector: Tensor) -> Pending:
        """Starts summing a few numbers in host memory over all ranks, in place.

        This is bookkeeping, and its bytes are not counted as traffic. Collective over the world.
        """
        group, waiting = self.everyone.process_group, self.meters.clock.phase(Phase.EXCHANGE_WAIT)
        if group is None:
            return Pending(None, vector, waiting)
        options = dist.AllreduceOptions()
        options.timeout = DRIFT
        return Pending(group.allreduce([vector], options), vector, waiting)


def choose_device(choice: str, ranks: Ranks, began: str | None = None) -> tuple[torch.device, str]:
    """This rank's device, and a warning for the first rank to print. Collective over the world.

    `began`: the kind on which a run that goes on began, which stays. Raises UserError if cards are
    required and not every rank can have its own; RunFailed, on all ranks, if that was otherwise
    when the run began.
    """
    views = ranks.gather_objects(view_of(began or choice, launched().host), "cards")
    with ranks.together():
        placement = place_again(began, views) if began else place(choice, views)
        return placement.device(ranks.topology.rank), placement.warning


@contextmanager
def open_links(topology: Topology, device: torch.device, meters: Meters) -> Iterator["Links"]:
    """Opens Horovod and torch.distributed for a known device; see `open_ranks` and `link`."""
    with open_ranks(topology) as ranks, link(ranks, device, meters) as links:
        yield links


@contextmanager
def link(ranks: Ranks, device: torch.device, meters: Meters) -> Iterator["Links"]:
    """Opens torch.distributed on the ranks' devices, beside Horovod; `open_ranks` closes it.

    Collective over the world.
    """
    topology = ranks.topology
    if device.type == "cuda":
        torch.cuda.set_device(device)
        one_precision()
    aside = Aside(topology, device)
    try:
        if topology.world_size > 1:
            _open_torch(topology, device)
        groups = _torch_groups(topology)
        yield Links(topology, device, meters, ranks.process_sets, groups, aside)
    finally:
        aside.close()


@contextmanager
def open_world(
    topology: Topology, layout: Layout, device: torch.device, meters: Meters
) -> Iterator[World]:
    """Opens the world of this process for one layout; see `open_links`. Collective over the
    world."""
    with open_links(topology, device, meters) as links:
        yield links.world(layout)


def one_precision() -> None:
    """Makes a card's convolutions round float32 as its matrix products do.

    torch's default rounds the former to TF32 and the latter not, so that a network's speed could
    not be compared with a plain product's. `TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1` uses TF32 for both.
    """
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32


@dataclass(frozen=True)
class Links:
    """The connections between ranks, independent of the layout."""

    topology: Topology
    device: torch.device
    meters: Meters
    process_sets: Sequence[hvd.ProcessSet]
    process_groups: dict[tuple[int, ...], dist.ProcessGroup | None]
    aside: Aside

    def world(self, layout: Layout, user: str = "") -> World:
        """The groups for a layout, for one of several users. Does not communicate."""
        topology = self.topology
        peers = topology.peer_groups[topology.local_rank]
        sets = self.process_sets
        peer_set = sets[topology.local_rank] if sets else hvd.global_process_set
        return World(
            topology=topology,
            device=self.device,
            meters=self.meters,
            node=self._group(topology.node_groups[topology.node], Phase.NODE_WAIT),
            slices=self._slices(layout),
            everyone=self._group(topology.world, Phase.EXCHANGE_WAIT),
            replicas=self._group(topology.replica_group(layout), Phase.EXCHANGE_WAIT),
            peers=PeerGroup(
                topology.nodes,
                topology.node,
                peer_set if len(peers) > 1 else None,
                self.meters,
                Lines(
                    down=self.aside.line("down", host_blocks=True),
                    up=self.aside.line("up", host_blocks=True),
                    reduce=self.aside.line("reduce", host_blocks=True),
                    gathered=self.aside.line("gathered", host_blocks=True),
                ),
                user,
            ),
            across=self._group(peers, Phase.EXCHANGE_WAIT),
            aside=self.aside,
        )

    def _slices(self, layout: Layout) -> Group:
        """The slice group; in two hops if it spans nodes of several ranks and uses Gloo."""
        topology = self.topology
        # Gloo ignores nodes: with G ranks on each, every block would cross a node's link G times,
        # once for each rank behind it. NCCL plans its way between nodes itself.
        ranks = topology.slice_group(layout)
        one_hop = topology.nodes_of(ranks) == 1 or topology.ranks_per_node == 1
        if one_hop or self.device.type == "cuda":
            return self._group(ranks, Phase.SLICE_WAIT)
        node = self._group(topology.node_groups[topology.node], Phase.SLICE_WAIT)
        across = self._group(topology.peer_groups[topology.local_rank], Phase.SLICE_WAIT)
        return self._group(ranks, Phase.SLICE_WAIT).in_hops(Hops(node, across))

    def _group(self, ranks: tuple[int, ...], phase: Phase) -> Group:
        nodes = self.topology.nodes_of(ranks)
        process_group = self.process_groups[ranks] if len(ranks) > 1 else None
        return Group(ranks, self.topology.rank, nodes, process_group, self.meters, phase)


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
    """The address of this host as seen on the way to Horovod's rendezvous, which all hosts can
    reach."""
    rendezvous = os.environ.get("HOROVOD_GLOO_RENDEZVOUS_ADDR", "127.0.0.1")
    return address_towards(rendezvous)


def _torch_groups(topology: Topology) -> dict[tuple[int, ...], dist.ProcessGroup | None]:
    """Process groups by their ranks; each rank makes all of them, in the same order.

    `new_group` is collective over the world, also for ranks outside the group.
    """
    groups: dict[tuple[int, ...], dist.ProcessGroup | None] = {}
    if topology.world_size > 1:
        groups[topology.world] = dist.group.WORLD
    for ranks in topology.node_groups + topology.peer_groups:
        if 1 < len(ranks) < topology.world_size:
            groups[ranks] = dist.new_group(list(ranks), timeout=TIMEOUT)
    return groups
