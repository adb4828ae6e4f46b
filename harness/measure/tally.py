"""Adds up the costs and scores of windows, as a vector that ranks can gather."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.measure.clock import Times
from harness.measure.phase import Phase
from harness.measure.summary import RankCost, Spread
from harness.measure.traffic import Bytes
from harness.measure.utilisation import UNKNOWN, Capacity, utilisation_metrics

PHASES = tuple(Phase)


def over_ranks(values: Tensor, nodes: int) -> float:
    """The mean over ranks."""
    return float(values.mean())


def per_node(values: Tensor, nodes: int) -> float:
    """The sum over each node's ranks, averaged over nodes."""
    return float(values.sum()) / nodes


@dataclass(frozen=True)
class Column:
    """A number that each rank adds up, and how the ranks' values become one."""

    name: str
    per: str = ""
    """The column of counts to divide by; empty for none."""
    unit: float = 1.0
    """A further divisor."""
    metric: str = ""
    """MLflow's name of the reduced number; empty if it is logged in another form, or not at all."""
    reduce: Callable[[Tensor, int], float] = over_ranks
    """Reduces values [world], given the number of nodes, to one number."""


COLUMNS = (
    Column("micro_batches"),
    Column("windows"),
    Column("byte_windows"),
    Column("loss", "micro_batches", metric="train/loss"),
    Column("top1", "micro_batches", metric="train/top1"),
    Column("in_node", "byte_windows", 1e6, "traffic/in_node_mb_per_step"),
    Column("cross_node", "byte_windows", 1e6, "traffic/cross_node_mb_per_step", per_node),
    Column("cpu_seconds", "byte_windows"),
    Column("flop_per_window"),
    Column("matmul_flop_per_second"),
    Column("cores"),
    *(Column(phase, "windows") for phase in PHASES),
)
"""All numbers that ranks gather for an interval or a run, in the order of the vector."""


class Tally:
    """Sums over windows of one rank: times, bytes, processor time, loss and hits."""

    def __init__(self, capacity: Capacity = UNKNOWN) -> None:
        self._sums = {column.name: 0.0 for column in COLUMNS}
        self._scores: list[Tensor] = []
        self.add("flop_per_window", capacity.flop_per_window)
        self.add("matmul_flop_per_second", capacity.matmul_flop_per_second)
        self.add("cores", capacity.cores)

    def add(self, name: str, value: float) -> None:
        """Adds to a column."""
        self._sums[name] += value

    def add_times(self, windows: Sequence[Times]) -> None:
        for times in windows:
            for phase in PHASES:
                self.add(phase, times[phase])
        self.add("windows", len(windows))

    def add_bytes(self, sent: Bytes) -> None:
        """Adds the bytes sent in one window."""
        self.add("in_node", sent.in_node)
        self.add("cross_node", sent.cross_node)
        self.add("byte_windows", 1)

    def add_cpu(self, seconds: float) -> None:
        """Adds the CPU time of all threads of this process in one window."""
        self.add("cpu_seconds", seconds)

    def add_scores(self, loss: Tensor, top1: Tensor) -> None:
        """Adds the scores of one micro-batch, kept on the device until `vector`."""
        self._scores.append(torch.stack((loss.detach(), top1.detach())))
        self.add("micro_batches", 1)

    def vector(self) -> Tensor:
        """float64 on the host; `Totals` reads the gathered rows. Reads the device once."""
        values = dict(self._sums)
        if self._scores:
            scores = torch.stack(self._scores).double().sum(0).tolist()
            values |= zip(("loss", "top1"), scores, strict=True)
        return torch.tensor([values[column.name] for column in COLUMNS], dtype=torch.float64)


class Totals:
    """Tallies of all ranks, [world, columns] as gathered from `Tally.vector`.

    `images`: those of one rank in a window. `waits_in_backward`: see `RankCost`.
    """

    def __init__(
        self, rows: Tensor, nodes: int, images: float = 0.0, waits_in_backward: bool = False
    ) -> None:
        sums = {column.name: rows[:, place] for place, column in enumerate(COLUMNS)}
        self._counts = {each.per: int(sums[each.per].min()) for each in COLUMNS if each.per}
        per = {name: sums[name].clamp(min=1) for name in self._counts}
        self._of_ranks = {
            each.name: sums[each.name] / per.get(each.per, 1) / each.unit for each in COLUMNS
        }
        self._waits_in_backward = waits_in_backward
        self._nodes = nodes
        self._images = images

    def __getitem__(self, name: str) -> float:
        """A column's one number; 0 if nothing was counted."""
        (reduce,) = (column.reduce for column in COLUMNS if column.name == name)
        return reduce(self._of_ranks[name], self._nodes)

    @property
    def windows(self) -> int:
        """Timed windows, on the rank that has recorded the fewest."""
        return self._counts["windows"]

    @property
    def loss(self) -> float:
        return self["loss"]

    @property
    def top1(self) -> float:
        return self["top1"]

    @property
    def in_node_mb(self) -> float:
        """MB per rank and window."""
        return self["in_node"]

    @property
    def cross_node_mb(self) -> float:
        """MB per node's link and window."""
        return self["cross_node"]

    @property
    def _times(self) -> Tensor:
        """Milliseconds per window, [world, phases]."""
        return torch.stack([self._of_ranks[phase] for phase in PHASES], dim=1)

    @property
    def step_ms(self) -> Spread:
        return _spread(self._times.sum(1))

    @property
    def phases_ms(self) -> dict[str, Spread]:
        return {phase.value: _spread(self._of_ranks[phase]) for phase in PHASES}

    @property
    def per_rank(self) -> tuple[RankCost, ...]:
        return tuple(self._cost(rank) for rank in range(len(self._times)))

    def _cost(self, rank: int) -> RankCost:
        own = {name: float(values[rank]) for name, values in self._of_ranks.items()}
        times = {phase.value: own[phase] for phase in PHASES}
        # Infinite if no window was timed, so that rates become 0.
        window_seconds = sum(times.values()) / 1e3 or math.inf
        busy, cores = own["cpu_seconds"] / window_seconds, own["cores"]
        return RankCost(
            rank=rank,
            node=rank * self._nodes // len(self._times),
            images_per_second=self._images / window_seconds,
            phases_ms=times,
            counter_percent=100 * busy / cores if cores and any(times.values()) else None,
            flop_per_second=own["flop_per_window"] / window_seconds,
            matmul_flop_per_second=own["matmul_flop_per_second"],
            waits_in_backward=self._waits_in_backward,
        )

    def metrics(self) -> dict[str, float]:
        """Metrics by MLflow's names; a column whose windows or micro-batches were not counted is
        left out."""
        found = {
            column.metric: self[column.name]
            for column in COLUMNS
            if column.metric and self._counts.get(column.per, 1)
        }
        if not self.windows:
            return found
        for name, spread in {"step": self.step_ms, **self.phases_ms}.items():
            found[f"time/{name}_ms"] = spread.mean
            found[f"time_min/{name}_ms"] = spread.minimum
            found[f"time_max/{name}_ms"] = spread.maximum
        return found | utilisation_metrics(self.per_rank)


def _spread(values: Tensor) -> Spread:
    return Spread(
        minimum=float(values.min()), mean=float(values.mean()), maximum=float(values.max())
    )
