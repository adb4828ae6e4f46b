"""Adds up what windows cost and taught, as a vector that ranks can gather."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from harness.measure.clock import Times
from harness.measure.phase import Phase
from harness.measure.summary import RankCost, Spread
from harness.measure.traffic import Bytes
from harness.measure.utilisation import UNKNOWN, Capacity, utilisation_metrics

PHASES = tuple(Phase)


class Tally:
    """Sums over windows of one rank: times, bytes, processor time, loss and hits."""

    def __init__(self, capacity: Capacity = UNKNOWN) -> None:
        self._capacity = capacity
        self._cpu_seconds = 0.0
        self._times = dict.fromkeys(PHASES, 0.0)
        self._windows = 0
        self._bytes = Bytes()
        self._byte_windows = 0
        self._scores: list[Tensor] = []

    def add_times(self, windows: Sequence[Times]) -> None:
        for times in windows:
            for phase in PHASES:
                self._times[phase] += times[phase]
        self._windows += len(windows)

    def add_bytes(self, sent: Bytes) -> None:
        self._bytes = self._bytes + sent
        self._byte_windows += 1

    def add_cpu(self, seconds: float) -> None:
        """Processor time of all threads of this process, in one window."""
        self._cpu_seconds += seconds

    def add_scores(self, loss: Tensor, top1: Tensor) -> None:
        """Of one micro-batch; kept on the device until `vector`."""
        self._scores.append(torch.stack((loss.detach(), top1.detach())))

    def vector(self) -> Tensor:
        """float64 on the host; `Totals` reads the gathered rows. Reads the device once."""
        scores = torch.zeros(2, dtype=torch.float64)
        if self._scores:
            scores = torch.stack(self._scores).double().sum(0).cpu()
        rest = [len(self._scores), self._windows, self._byte_windows]
        sent = [self._bytes.in_node, self._bytes.cross_node]
        could = self._capacity
        rank = [could.flop_per_window, could.matmul_flop_per_second, could.cores]
        times = [self._times[phase] for phase in PHASES]
        values = [*rest, *sent, self._cpu_seconds, *rank, *times]
        return torch.cat((scores, torch.tensor(values, dtype=torch.float64)))


class Totals:
    """Tallies of all ranks, [world, n] as gathered from `Tally.vector`.

    `images`: of one rank in a window. `waits_in_backward`: see `RankCost`.
    """

    def __init__(
        self, rows: Tensor, nodes: int, images: float = 0.0, waits_in_backward: bool = False
    ) -> None:
        self._scores = rows[:, :2] / rows[:, 2:3].clamp(min=1)
        self._sent = rows[:, 5:7] / rows[:, 4:5].clamp(min=1) / 1e6
        self._cpu_ms = rows[:, 7] / rows[:, 4].clamp(min=1) * 1e3
        self._capacities = rows[:, 8:11]
        self._times = rows[:, 11:] / rows[:, 3:4].clamp(min=1)
        self.windows = int(rows[:, 3].min())
        self._byte_windows = int(rows[:, 4].min())
        self._waits_in_backward = waits_in_backward
        self._nodes = nodes
        self._images = images

    @property
    def loss(self) -> float:
        return float(self._scores[:, 0].mean())

    @property
    def top1(self) -> float:
        return float(self._scores[:, 1].mean())

    @property
    def in_node_mb(self) -> float:
        """Per rank and window."""
        return float(self._sent[:, 0].mean())

    @property
    def cross_node_mb(self) -> float:
        """Per node's link and window."""
        return float(self._sent[:, 1].sum()) / self._nodes

    @property
    def step_ms(self) -> Spread:
        return _spread(self._times.sum(1))

    @property
    def phases_ms(self) -> dict[str, Spread]:
        return {phase.value: _spread(self._times[:, column]) for column, phase in enumerate(PHASES)}

    @property
    def per_rank(self) -> tuple[RankCost, ...]:
        return tuple(self._cost(rank) for rank in range(len(self._times)))

    def _cost(self, rank: int) -> RankCost:
        flop, matmul, cores = self._capacities[rank].tolist()
        times = self._times[rank].tolist()
        # Infinitely long where no window was timed: nothing was done in it.
        window_seconds = sum(times) / 1e3 or math.inf
        busy = float(self._cpu_ms[rank]) / 1e3 / window_seconds
        return RankCost(
            rank=rank,
            node=rank * self._nodes // len(self._times),
            images_per_second=self._images / window_seconds,
            phases_ms={phase.value: ms for phase, ms in zip(PHASES, times, strict=True)},
            counter_percent=100 * busy / cores if cores and any(times) else None,
            flop_per_second=flop / window_seconds,
            matmul_flop_per_second=matmul,
            waits_in_backward=self._waits_in_backward,
        )

    def metrics(self) -> dict[str, float]:
        """MLflow's names. Of times and bytes, nothing where no window was counted."""
        found = {"train/loss": self.loss, "train/top1": self.top1}
        if self._byte_windows:
            found["traffic/cross_node_mb_per_step"] = self.cross_node_mb
            found["traffic/in_node_mb_per_step"] = self.in_node_mb
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
