"""What a run has measured so far: intervals for the journal, the whole for the summary."""

import time
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from harness.config import Config
from harness.exchange.compression import sent_bytes
from harness.exchange.exchange import route_of
from harness.measure.summary import Evaluation, RunSummary
from harness.measure.tally import Tally, Totals
from harness.measure.traffic import Bytes, Sizes, formula
from harness.optimizer import lr_at
from harness.parallel.ddp import power_sgd_elements
from harness.parallel.topology import Topology
from harness.parallel.world import Gathered, World


class Journal(Protocol):
    """Where a run's metrics go; does nothing on ranks but the first."""

    def log(self, step: int, metrics: dict[str, float]) -> None: ...
    def advance(self, window: int, windows: int, note: str) -> None: ...
    def warn(self, name: str, line: str) -> None: ...


class Unheard:
    """A journal that keeps nothing."""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        return None

    def advance(self, window: int, windows: int, note: str) -> None:
        return None

    def warn(self, name: str, line: str) -> None:
        return None


class Stopwatch:
    """Wall time of training, in laps; what lies between them is not training."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._started: float | None = None
        self.seconds = 0.0

    def start(self) -> None:
        self._started = self._now()

    def stop(self) -> None:
        assert self._started is not None
        self.seconds += self._now() - self._started
        self._started = None

    def lap(self) -> float:
        """Seconds so far, the watch running on."""
        self.stop()
        self.start()
        return self.seconds

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


class Ledger:
    """Adds up windows; tells the journal of each interval, and the summary of them all.

    `first` is the window the run starts with, `windows` the one it ends before.
    """

    def __init__(
        self, config: Config, world: World, first: int, windows: int, images_per_window: int
    ) -> None:
        self._config = config
        self._world = world
        self._first = first
        self._windows = windows
        self._images_per_window = images_per_window
        self._untimed = min(config.train.untimed_windows, windows - first)
        self._run, self._interval = Tally(), Tally()
        self._under_way: tuple[int, Gathered] | None = None
        self._evaluations: list[Evaluation] = []
        self._sent = world.meters.traffic.total
        self._timed_from = 0.0
        self.stopwatch = Stopwatch(world.device)

    def window_begins(self, window: int) -> None:
        if window == self._first + self._untimed:
            self._timed_from = self.stopwatch.lap()
            # On a card the untimed windows may only be done now: they must not count as timed.
            self._interval.add_times(self._world.meters.clock.read())
        self._sent = self._world.meters.traffic.total

    def add_scores(self, loss: Tensor, top1: Tensor) -> None:
        """Of one micro-batch."""
        self._interval.add_scores(loss, top1)

    def window_ended(self, window: int, journal: Journal) -> None:
        """Books the window. Collective over the world at the end of each interval."""
        times = self._world.meters.clock.read()
        sent = self._world.meters.traffic.total - self._sent
        timed = window >= self._first + self._untimed
        for tally in (self._run, self._interval) if timed else (self._interval,):
            tally.add_times(times)
            tally.add_bytes(sent)
        ended = window + 1
        if ended % self._config.train.log_every == 0 or ended == self._windows:
            self._send_interval(ended, journal)

    def evaluated(self, ended: int, metrics: dict[str, float], journal: Journal) -> None:
        self._evaluations.append(
            Evaluation(
                window=ended,
                images=ended * self._images_per_window,
                train_seconds=self.stopwatch.seconds,
                metrics=metrics,
            )
        )
        journal.log(ended, metrics)

    def _send_interval(self, ended: int, journal: Journal) -> None:
        """Sends this interval's tally on its way and logs the one before: nobody waits for it."""
        self._log_under_way(journal)
        gathered = self._world.launch_gather(self._interval.vector(), "interval")
        self._under_way = (ended, gathered)
        self._interval = Tally()
        if ended == self._windows:
            self._log_under_way(journal)

    def _log_under_way(self, journal: Journal) -> None:
        if self._under_way is None:
            return
        ended, gathered = self._under_way
        self._under_way = None
        totals = Totals(gathered.wait(), self._world.topology.nodes)
        rate = self._images_per_window / totals.step_ms.mean * 1e3 if totals.windows else 0.0
        metrics = totals.metrics()
        metrics["optimizer/lr"] = lr_at(self._config.optimizer, ended - 1, self._windows)
        metrics["throughput/images_per_second"] = rate
        journal.log(ended, metrics)
        journal.advance(ended, self._windows, f"loss {totals.loss:.3f} · {rate:.0f} images/s")

    def summary(self, backbone: int, classifier: int, expected: Bytes) -> RunSummary:
        """Of the run that has ended. `backbone`, `classifier`: their parameters, in all.

        Collective over the world.
        """
        rows = self._world.launch_gather(self._run.vector(), "summary").wait()
        topology, config = self._world.topology, self._config
        totals = Totals(rows, topology.nodes)
        timed = self._windows - self._first - self._untimed
        seconds = self.stopwatch.seconds - self._timed_from
        return RunSummary(
            name=config.name,
            seed=config.seed,
            ranks=topology.world_size,
            nodes=topology.nodes,
            windows=self._windows,
            images=self._windows * self._images_per_window,
            parameters_backbone=backbone,
            parameters_classifier=classifier,
            images_per_second=timed * self._images_per_window / seconds if timed else 0.0,
            untimed_windows=self._untimed,
            timed_windows=timed,
            step_ms=totals.step_ms,
            phases_ms=totals.phases_ms,
            cross_node_mb_per_step=totals.cross_node_mb,
            cross_node_mb_per_step_formula=expected.cross_node * topology.ranks_per_node / 1e6,
            in_node_mb_per_step=totals.in_node_mb,
            in_node_mb_per_step_formula=expected.in_node / 1e6,
            train_seconds=self.stopwatch.seconds,
            evaluations=tuple(self._evaluations),
            mlflow_run_id=None,
            commit=None,
        )


def expected_bytes(
    config: Config,
    topology: Topology,
    shared: Sequence[torch.Size],
    slices: tuple[int, ...],
    features: int,
    element: int,
) -> Bytes:
    """What a window sends by formula; the counted bytes must equal it.

    `shared`: shapes of what every rank holds; `slices`: elements of each rank of a node that other
    nodes hold too; `element`: bytes of one.
    """
    exchange = config.exchange
    route = route_of(exchange, config.classifier)
    members = topology.world_size if route == "flat" else topology.nodes

    def wire_bytes(elements: int) -> float:
        if exchange.kind == "ddp_powersgd":
            return power_sgd_elements(shared, exchange.matrix_rank) * element
        return sent_bytes(exchange.compression, elements, element, members)

    sizes = Sizes(
        nodes=topology.nodes,
        ranks_per_node=topology.ranks_per_node,
        images_per_rank=config.train.batch_size,
        passes=exchange.backward_passes_per_step,
        shared=sum(shape.numel() for shape in shared),
        slices=slices,
        features=features,
        element_bytes=element,
        feature_bytes=2 if config.train.precision == "bf16" else element,
        wire_bytes=wire_bytes,
        pieces=exchange.pieces,
        label_bytes=8 if element == 8 else 4,
        statistic_bytes=element,
    )
    return formula(config.classifier.layout, exchange.kind, route, sizes)
