"""Collectives of a group of ranks through torch.distributed; a group of one answers at once."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from harness.measure.clock import Clock
from harness.measure.phase import Phase
from harness.measure.traffic import (
    Bytes,
    Traffic,
    all_gather_bytes,
    all_reduce_bytes,
    all_to_all_bytes,
)
from harness.parallel.line import Line
from harness.parallel.order import Order
from harness.parallel.pending import Done, Pending, Reducing
from harness.parallel.pulse import SILENT, Pulse


@dataclass(frozen=True)
class Meters:
    """Records how long collectives were waited for and what they sent."""

    clock: Clock
    traffic: Traffic
    pulse: Pulse = SILENT
    """Shows outside what this rank does."""
    order: Order | None = None
    """Remembers the collectives, to compare them over ranks; None: nobody does."""


@dataclass(frozen=True)
class Hops:
    """The two groups through which a block can reach any rank: the ranks of its node, and the ranks
    with the same local rank, in either order."""

    node: "Group"
    across: "Group"


@dataclass(frozen=True)
class Behind:
    """The second step of a group's `launch_reduce`: the line it runs on and the group it uses."""

    line: Line
    group: "Group"


class Group:
    """Ranks that communicate in collectives, in one fixed order on all of them.

    `process_group` is None for a group of one rank, which sends nothing. `nodes` is the number of
    nodes over which the ranks are evenly spread. `wait_phase` is None if the waits are not those of
    the training thread.
    """

    def __init__(
        self,
        ranks: tuple[int, ...],
        rank: int,
        nodes: int,
        process_group: dist.ProcessGroup | None,
        meters: Meters,
        wait_phase: Phase | None,
    ) -> None:
        if (process_group is None) != (len(ranks) == 1):
            raise ValueError(f"a group of {len(ranks)} ranks got process group {process_group}")
        self.ranks = ranks
        self.size = len(ranks)
        self.index = ranks.index(rank)
        self._nodes = nodes
        self.process_group = process_group
        self._meters = meters
        self._wait_phase = wait_phase
        self._behind: Behind | None = None
        self._hops: Hops | None = None

    def followed(self, behind: Behind) -> "Group":
        """A copy of the group whose `launch_reduce` continues on `behind`."""
        twin = copy.copy(self)
        twin._behind = behind
        return twin

    def in_hops(self, hops: Hops) -> "Group":
        """A copy of this group of all ranks of several nodes, whose gathers and reduce-scatters
        send each block over a node's link once, for a library that ignores nodes."""
        twin = copy.copy(self)
        twin._hops = hops
        return twin

    def waiting(self) -> AbstractContextManager[None]:
        """The clock's phase for waits for this group's collectives."""
        if self._wait_phase is None:
            return nullcontext()
        return self._meters.clock.phase(self._wait_phase)

    def all_gather(self, block: Tensor) -> Tensor:
        """Gathers [b, ...] of each rank into [size * b, ...] on all. Collective over the group."""
        return self.launch_all_gather(block).wait()

    def launch_all_gather(self, block: Tensor, into: Tensor | None = None) -> Pending:
        """Starts `all_gather`, into `into` or a new tensor. Collective over the group."""
        if self.process_group is None:
            return self._pending(None, block if into is None else into.copy_(block))
        if self._hops is not None and into is None:
            return self._gathered_in_hops(block, self._hops)
        block = block.contiguous()
        gathered = into
        if gathered is None:
            gathered = block.new_empty((self.size * block.shape[0], *block.shape[1:]))
        self._count("all_gather", all_gather_bytes, block)
        work = dist.all_gather_single(gathered, block, group=self.process_group, async_op=True)
        return self._pending(work, gathered)

    def launch_gather(self, row: Tensor, name: str = "") -> Pending:
        """Starts an all-gather; torch needs no name. Collective over the group."""
        return self.launch_all_gather(row)

    def launch_all_to_all(self, blocks: Tensor) -> Pending:
        """Starts sending each rank its block of [size * b, ...] and receiving the blocks that all
        ranks have for this one, in the order of ranks. Collective over the group."""
        if self.process_group is None:
            return self._pending(None, blocks)
        return self._exchanged(blocks.contiguous())

    def launch_reduce_scatter(self, blocks: Tensor) -> Pending:
        """Starts summing [size * b, ...] over ranks; each rank receives its own block, [b, ...].
        Collective over the group."""
        if self.process_group is None:
            return self._pending(None, blocks)
        blocks = blocks.contiguous()
        if blocks.is_cuda:
            own = blocks.new_empty((blocks.shape[0] // self.size, *blocks.shape[1:]))
            self._count("reduce_scatter", all_gather_bytes, own)
            work = dist.reduce_scatter_single(own, blocks, group=self.process_group, async_op=True)
            return self._pending(work, own)
        if self._hops is not None:
            return self._scattered_in_hops(blocks, self._hops)
        # Gloo's own reduce-scatter took three times as long as its all-reduce. An all-to-all sends
        # the same bytes as a ring and leaves one local sum.
        return self._exchanged(blocks, self._sum_blocks)

    def _gathered_in_hops(self, block: Tensor, hops: Hops) -> Pending:
        """Gathers between peers of all nodes first, then inside the node."""

        # Rank r = node * G + local holds, after the first hop, the blocks of its local rank from
        # all nodes. Gathered inside the node, blocks are ordered [local, node], but a gather's
        # result must be ordered by rank: [node, local].
        def in_node(over_nodes: Tensor) -> Tensor:
            whole = hops.node.launch_all_gather(over_nodes).wait()
            by_local_rank = whole.view(hops.node.size, hops.across.size, *block.shape)
            return by_local_rank.transpose(0, 1).reshape(-1, *block.shape[1:])

        return hops.across.launch_all_gather(block).then(in_node)

    def _scattered_in_hops(self, blocks: Tensor, hops: Hops) -> Pending:
        """Sums inside the node first, each rank the blocks of its peers; then between nodes."""
        # Blocks ordered by rank are [node, local]. The node's reduce-scatter takes them as [local,
        # node], so that each rank receives the blocks of all its peers.
        by_node = blocks.view(hops.across.size, hops.node.size, -1, *blocks.shape[1:])
        of_peers = by_node.transpose(0, 1).reshape(blocks.shape)

        in_node = hops.node.launch_reduce_scatter(of_peers)
        return in_node.then(lambda total: hops.across.launch_reduce_scatter(total).wait())

    def _exchanged(
        self,
        blocks: Tensor,
        finish: Callable[[Tensor], Tensor] | None = None,
        waiting: AbstractContextManager[None] | None = None,
    ) -> Pending:
        self._count("all_to_all", all_to_all_bytes, blocks[: blocks.shape[0] // self.size])
        received = torch.empty_like(blocks)
        work = dist.all_to_all_single(received, blocks, group=self.process_group, async_op=True)
        return Pending(work, received, waiting or self.waiting(), finish)

    def _sum_blocks(self, blocks: Tensor) -> Tensor:
        return blocks.view(self.size, -1, *blocks.shape[1:]).sum(0)

    def launch_average(self, tensor: Tensor) -> Pending:
        """Starts averaging `tensor` over the group, in place. Collective over the group."""
        return self._launch_reduce(tensor, lambda total: total.div_(self.size))

    def launch_sum(self, tensor: Tensor, name: str = "") -> Pending:
        """Starts summing `tensor`, in place; torch needs no name. Collective over the group."""
        return self._launch_reduce(tensor, None)

    def launch_reduce(
        self, rows: Tensor, reduce: Callable[[Tensor], Tensor], name: str = ""
    ) -> Reducing:
        """Starts reducing rows [size, b], one for each rank, and gathering the results, [size, b].

        Each rank receives the row that every rank has for it and applies `reduce`, from [size, b]
        to [b]; the results are gathered on all ranks. `reduce` runs beside training, in the order
        of these calls; torch needs no name. Collective over the group.
        """
        if self.process_group is None:
            return Reducing(Done(reduce(rows)[None]), self.waiting())
        assert self._behind is not None, "launch_reduce needs a line to continue on"
        second = self._behind.group
        arriving = self._exchanged(rows.contiguous(), waiting=nullcontext())

        def follow() -> Pending:
            return second.launch_all_gather(reduce(arriving.wait())[None])

        return Reducing(self._behind.line.run(follow), self.waiting())

    def broadcast(self, tensor: Tensor) -> None:
        """Copies the first member's `tensor` to all, in place and bit for bit, at the start of a
        run. It is neither timed nor counted. Collective over the group."""
        if self.process_group is not None:
            dist.broadcast(tensor, group=self.process_group, group_src=0)

    def maximum(self, tensor: Tensor) -> Tensor:
        """The maximum of each element over the group, in place. Collective over the group."""
        return self._launch_reduce(tensor, None, dist.ReduceOp.MAX).wait()

    def _launch_reduce(
        self,
        tensor: Tensor,
        finish: Callable[[Tensor], Tensor] | None,
        operation: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM,
    ) -> Pending:
        if self.process_group is None:
            return self._pending(None, tensor)
        self._count("all_reduce", all_reduce_bytes, tensor)
        work = dist.all_reduce(tensor, operation, group=self.process_group, async_op=True)
        return self._pending(work, tensor, finish)

    def _count(
        self, operation: str, formula: Callable[[float, int, int], Bytes], tensor: Tensor
    ) -> None:
        if self._meters.order is not None and self.process_group is not None:
            name = self.process_group.group_name
            self._meters.order.add(operation, name, self.ranks, tensor)
        sent = tensor.numel() * tensor.element_size()
        self._meters.traffic.add(formula(sent, self.size, self._nodes))

    def _pending(
        self,
        work: dist.Work | None,
        result: Tensor,
        finish: Callable[[Tensor], Tensor] | None = None,
    ) -> Pending:
        return Pending(work, result, self.waiting(), finish)
