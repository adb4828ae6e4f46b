"""One process in the place of a rank of a larger world: tensors of the real sizes, nothing sent."""

from collections import deque
from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from harness.measure.phase import Phase
from harness.parallel.aside import Aside
from harness.parallel.group import Group, Meters
from harness.parallel.line import Line, Running
from harness.parallel.peers import Sum
from harness.parallel.pending import Pending
from harness.parallel.ranks import Gathered
from harness.parallel.rehearsal import Rehearsal
from harness.parallel.topology import Layout, Topology
from harness.parallel.world import World
from tests.alone import CPU, meters

T = TypeVar("T")


class _Made:
    """What arrived lives until it is waited for, as it does where all others are in time; the
    result then, as long as this does."""

    def __init__(self, make: Callable[[], Tensor]) -> None:
        self._make: Callable[[], Tensor] | None = make
        self._made: Tensor | None = None

    def wait(self) -> Tensor:
        if self._make is not None:
            self._made, self._make = self._make(), None
        assert self._made is not None
        return self._made


def reduced(rows: Tensor, reduce: Callable[[Tensor], Tensor]) -> _Made:
    """As if all ranks had for this one what it has for them, and made of it what it makes."""
    arrived = rows.clone()
    return _Made(lambda: torch.empty_like(rows).copy_(reduce(arrived)))


def gathered(row: Tensor, ranks: int) -> _Made:
    """As if all had sent what this one does: it has arrived before it is waited for."""
    arrived = row.expand(ranks, -1).clone()
    return _Made(lambda: arrived)


class LateLine(Line):
    """Takes a step when its result is asked for, after those before it: the most is under way.

    All on one thread, whose memory is measured.
    """

    def __init__(self) -> None:
        self._given: deque[_LateStep] = deque()

    def run(self, step: Callable[[], T]) -> Running[T]:
        given = _LateStep(self._given, step)
        self._given.append(given)
        return given


class _LateStep:
    def __init__(self, given: "deque[_LateStep]", step: Callable[[], Any]) -> None:
        self._given = given
        self._step: Callable[[], Any] | None = step
        self._made: Any = None

    def result(self) -> Any:
        while self._step is not None:
            self._given.popleft().take()
        return self._made

    def take(self) -> None:
        assert self._step is not None
        self._made, self._step = self._step(), None


class WideGroup(Rehearsal):
    """Carries any wire."""

    def __init__(self, size: int, index: int, counted: Meters) -> None:
        super().__init__(size, index, counted)
        self.ranks = tuple(range(size))

    def launch_reduce_scatter(self, blocks: Tensor) -> Pending:
        return self._pending(None, blocks.clone()).then(self._sum_blocks)

    def launch_gather(self, row: Tensor, name: str = "") -> _Made:  # type: ignore[override]
        return gathered(row, self.size)

    def launch_reduce(  # type: ignore[override]
        self, rows: Tensor, reduce: Callable[[Tensor], Tensor], name: str = ""
    ) -> _Made:
        return reduced(rows, reduce)


class WidePeers:
    """The same part on the other nodes."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.index = 0

    def launch_sum(self, buffer: Tensor, name: str) -> Sum:
        return _Made(lambda: buffer)

    def launch_gather(self, row: Tensor, name: str) -> _Made:
        return gathered(row, self.size)

    def launch_reduce(self, rows: Tensor, reduce: Callable[[Tensor], Tensor], name: str) -> _Made:
        return reduced(rows, reduce)


class WideWorld(World):
    """Rank 0's. Its gathers give back this rank's row alone."""

    @cached_property
    def _late(self) -> dict[str, Line]:
        return {}

    def launch_gather(self, vector: Tensor, name: str) -> Gathered:
        return Gathered(None, vector.detach().reshape(1, -1).contiguous())

    def gather_objects(self, value: Any, name: str) -> list[Any]:
        return [value]

    def gathers(self, purpose: str) -> Callable[[Any], list[Any]]:
        return lambda value: [value]

    def line(self, purpose: str) -> Line:
        return self._late.setdefault(purpose, LateLine())

    def beside(self, ranks: tuple[int, ...], purpose: str, *_: Any, **__: Any) -> Group:
        return _group(len(ranks), self.meters)

    def reducing(self, group: Group, purpose: str, late: bool = False) -> Group:
        return group


def _group(size: int, counted: Meters) -> Group:
    if size == 1:
        return Group((0,), 0, 1, None, counted, Phase.SLICE_WAIT)
    return WideGroup(size, 0, counted)


def wide_world(nodes: int, ranks_per_node: int, layout: Layout) -> World:
    topology, counted = Topology(0, nodes, ranks_per_node), meters()
    return WideWorld(
        topology=topology,
        device=CPU,
        meters=counted,
        node=_group(ranks_per_node, counted),
        slices=_group(len(topology.slice_group(layout)), counted),
        everyone=_group(topology.world_size, counted),
        replicas=_group(len(topology.replica_group(layout)), counted),
        peers=WidePeers(nodes),  # type: ignore[arg-type]
        across=_group(nodes, counted),
        aside=Aside(topology, CPU),
    )
