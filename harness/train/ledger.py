"""A run's measurements: metrics of each interval for the journal, and the summary."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from harness.config import Config
from harness.exchange.buckets import bucket_sizes
from harness.exchange.carriers import route_of
from harness.exchange.compression import crossing_bytes
from harness.exchange.kinds import Crosses
from harness.measure.summary import UNRECORDED, Evaluation, Provenance, RunSummary, Trained
from harness.measure.tally import Tally, Totals
from harness.measure.traffic import Bytes, Sizes, all_reduce_bytes, formula
from harness.measure.utilisation import UNKNOWN, Capacity
from harness.model.anatomy import Anatomy
from harness.model.sampling import rows_in_window
from harness.parallel.ddp import HALF_BYTES, power_sgd_elements
from harness.parallel.ranks import Gathered
from harness.parallel.world import World
from harness.train.checkpoint.meta import STARTED, Progress
from harness.train.course import Course
from harness.train.evaluation import NONFINITE, nonfinite_images
from harness.train.windows import (
    Snapshot,
    Stopwatch,
    TimeByRole,
    WindowRole,
    WindowSchedule,
    no_window_is_timed,
    pauses_are_near,
)


class Journal(Protocol):
    """Receives a run's metrics. It does nothing on ranks other than the first."""

    def log(self, step: int, metrics: dict[str, float]) -> None: ...
    def advance(self, window: int, windows: int, note: str) -> None: ...
    def warn(self, name: str, line: str) -> None: ...
    def attach(self, path: Path, folder: str) -> None: ...


class NullJournal:
    """A journal that records nothing."""

    def log(self, step: int, metrics: dict[str, float]) -> None: ...
    def advance(self, window: int, windows: int, note: str) -> None: ...
    def warn(self, name: str, line: str) -> None: ...
    def attach(self, path: Path, folder: str) -> None: ...


class Ledger:
    """Adds up windows; reports each interval to the journal and the whole run in the summary.

    Traced windows, and windows that resume a late exchange after a pause, are left out of all
    times, rates and byte counts. `progress` comes from the checkpoint that the run resumes.
    """

    def __init__(
        self,
        config: Config,
        world: World,
        course: Course,
        capacity: Capacity = UNKNOWN,
        progress: Progress = STARTED,
        stopwatch: Stopwatch | None = None,
    ) -> None:
        self._config = config
        self._world = world
        self._course = course
        self._capacity = capacity
        self._progress = progress
        self._schedule = WindowSchedule(config, course.first, course.windows)
        self._run, self._interval = Tally(capacity), Tally(capacity)
        self._under_way: tuple[int, Gathered] | None = None
        self._evaluated: list[tuple[int, Snapshot, dict[str, float], bool]] = []
        self._sent = world.meters.traffic.total
        self._cpu_from = 0.0
        self._drain_seconds = 0.0
        self.stopwatch = stopwatch or Stopwatch(world.device)
        self._times = TimeByRole(self.stopwatch, self._schedule.of(course.first))

    def begins(self, journal: Journal) -> None:
        """Starts the stopwatch once all ranks are ready, and warns of what will not be measured.

        Collective over the world.
        """
        if line := no_window_is_timed(self._config):
            journal.warn("timing", line)
        if line := pauses_are_near(self._config):
            journal.warn("timing_delay", line)
        # The first rank of each node opens its gauges meanwhile, which takes seconds.
        self._world.gather_objects(None, "begins")
        self.stopwatch.start()

    @contextmanager
    def paused(self, ended: int, drained: bool = False) -> Iterator[None]:
        """Inside the block training is paused, after `ended` windows; `drained`: with nothing in
        flight."""
        with self.stopwatch.paused():
            yield
        self._schedule.paused(ended, drained)

    def draining(self) -> None:
        """Until the next window begins, time is that of a drain."""
        tallies = self._tallies()
        self._times.switch_to(WindowRole.DRAINING)
        self._read_clock(tallies)

    def window_begins(self, window: int) -> None:
        role = self._schedule.of(window)
        if role is not self._times.role:
            tallies = self._tallies()
            self._times.switch_to(role)
            # A card may finish windows only now: they must not count for the next role.
            self._read_clock(tallies)
        self._times.windows[role] += 1
        self._sent = self._world.meters.traffic.total
        self._cpu_from = time.process_time()

    def _read_clock(self, tallies: Sequence[Tally]) -> None:
        times = self._world.meters.clock.read()
        for tally in tallies:
            tally.add_times(times)

    def add_scores(self, loss: Tensor, top1: Tensor) -> None:
        """Adds the scores of one micro-batch."""
        self._interval.add_scores(loss, top1)

    def window_ended(self, window: int, journal: Journal) -> None:
        """Records the window. Collective over the world at the end of each interval."""
        cpu_seconds = time.process_time() - self._cpu_from
        self._read_clock(self._tallies())
        sent = self._world.meters.traffic.total - self._sent
        for tally in self._tallies():
            tally.add_bytes(sent)
            tally.add_cpu(cpu_seconds)
        ended = window + 1
        if ended % self._config.train.log_every == 0 or ended == self._course.windows:
            self._send_interval(ended, journal)

    def _tallies(self) -> tuple[Tally, ...]:
        """The tallies that windows of this role are added to."""
        if self._times.role in (WindowRole.TRACED, WindowRole.RESUMING, WindowRole.DRAINING):
            return ()
        if self._times.role is WindowRole.UNTIMED:
            return (self._interval,)
        return self._run, self._interval

    def evaluated(self, ended: int, metrics: dict[str, float], journal: Journal) -> None:
        """Records an evaluation after `ended` windows. The stopwatch must be stopped."""
        for name, count in metrics.items():
            if name.endswith(f"/{NONFINITE}") and name.count("/") > 1:
                journal.warn("evaluation", nonfinite_images(name.split("/")[1], int(count), ended))
        drained = self._times.role is WindowRole.DRAINING
        self._evaluated.append((ended, self._times.snapshot(), metrics, drained))
        journal.log(ended, metrics)

    def has_evaluated(self, ended: int) -> bool:
        """Whether the checkpoint has the evaluation after `ended` windows."""
        return any(each.window == ended for each in self._progress.evaluations)

    def drained(self, seconds: float) -> None:
        """Records the duration of the drain at the end."""
        self._drain_seconds = seconds

    def progress(self) -> Progress:
        """Progress of the whole training so far. The stopwatch must be stopped."""
        evaluations = tuple(
            Evaluation(
                window=ended,
                images=self._course.images(ended),
                train_seconds=self._seconds_at(snapshot),
                metrics=metrics,
                drained=drained,
            )
            for ended, snapshot, metrics, drained in self._evaluated
        )
        known = self._progress.train_seconds is not None
        return Progress(
            train_seconds=self._seconds_at(self._times.snapshot()) if known else None,
            evaluations=self._progress.evaluations + evaluations,
        )

    def _seconds_at(self, snapshot: Snapshot) -> float:
        """Training seconds at this reading, including earlier runs if their time is known."""
        return (self._progress.train_seconds or 0.0) + self._times.charged(snapshot)

    def _send_interval(self, ended: int, journal: Journal) -> None:
        """Starts gathering this interval's tally and logs the one before, so that nobody waits."""
        self.settle(journal)
        gathered = self._world.launch_gather(self._interval.vector(), "interval")
        self._under_way = (ended, gathered)
        self._interval = Tally(self._capacity)
        if ended == self._course.windows:
            self.settle(journal)

    def end_interval(self, ended: int, journal: Journal) -> None:
        """Logs all windows so far: a run that goes on from here does not measure them again.

        Collective over the world.
        """
        if ended % self._config.train.log_every and ended < self._course.windows:
            self._send_interval(ended, journal)
        self.settle(journal)

    def settle(self, journal: Journal) -> None:
        """Logs the interval whose numbers are under way. Collective over the world."""
        if self._under_way is None:
            return
        ended, gathered = self._under_way
        self._under_way = None
        totals = self._totals(gathered.wait())
        rate = self._course.images_per_window / totals.step_ms.mean * 1e3 if totals.windows else 0.0
        metrics = totals.metrics()
        metrics["optimizer/lr"] = self._course.lr(ended - 1)
        if totals.windows:
            metrics["throughput/images_per_second"] = rate
        journal.log(ended, metrics)
        journal.advance(
            ended, self._course.windows, f"loss {totals.loss:.3f} · {rate:.0f} images/s"
        )

    def _totals(self, rows: Tensor) -> Totals:
        topology = self._world.topology
        hidden = self._config.exchange.traits.waits_in_backward and topology.world_size > 1
        images = self._course.images_per_window / topology.world_size
        return Totals(rows, topology.nodes, images, waits_in_backward=hidden)

    def summary(self, trained: Trained, provenance: Provenance = UNRECORDED) -> RunSummary:
        """The summary of a run that has ended. Collective over the world."""
        self._read_clock(self._tallies())  # a card may finish the last windows only now
        totals = self._totals(self._world.launch_gather(self._run.vector(), "summary").wait())
        topology, config = self._world.topology, self._config
        timed = self._times.windows[WindowRole.TIMED]
        seconds = self._times.seconds(WindowRole.TIMED)
        progress, expected = self.progress(), trained.expected
        return RunSummary(
            name=config.name,
            seed=config.seed,
            ranks=topology.world_size,
            nodes=topology.nodes,
            windows=self._course.windows,
            images=self._course.images(self._course.windows),
            images_per_window=self._course.images_per_window,
            parameters_backbone=trained.parameters_backbone,
            parameters_classifier=trained.parameters_classifier,
            images_per_second=timed * self._course.images_per_window / seconds if timed else 0.0,
            untimed_windows=self._schedule.untimed,
            timed_windows=timed,
            step_ms=totals.step_ms,
            phases_ms=totals.phases_ms,
            cross_node_mb_per_step=totals.cross_node_mb,
            cross_node_mb_per_step_formula=expected.cross_node * topology.ranks_per_node / 1e6,
            in_node_mb_per_step=totals.in_node_mb,
            in_node_mb_per_step_formula=expected.in_node / 1e6,
            train_seconds=self._seconds_at(self._times.snapshot()),
            train_seconds_known=progress.train_seconds is not None,
            drain_seconds=self._drain_seconds,
            evaluations=progress.evaluations,
            validation_images=dict(trained.validation_images),
            exponentials=trained.exponentials,
            restarts=provenance.restarts.number,
            lost_seconds=provenance.restarts.lost_seconds,
            mlflow_run_id=provenance.mlflow_run_id,
            commit=provenance.commit,
            per_rank=totals.per_rank,
        )


def expected_bytes(config: Config, anatomy: Anatomy) -> Bytes:
    """Bytes that a window sends, by formula; the counted bytes must equal them."""
    route = route_of(config.exchange, anatomy.nodes, anatomy.ranks_per_node)
    sizes = sizes_of(config, anatomy)
    return formula(anatomy.layout, config.exchange.chosen_kind, route, sizes)


def sizes_of(config: Config, anatomy: Anatomy) -> Sizes:
    """The sizes that the byte formula needs."""
    exchange, element, shared = config.exchange, anatomy.element_bytes, anatomy.shared
    owned = [each.size for each in anatomy.replicated_slices]
    drawn = exchange.slice_rows == "drawn"

    def crossing_rows(classes: int) -> int:
        passes = exchange.backward_passes_per_step
        return rows_in_window(anatomy.sampling, classes, passes) if drawn else classes

    def crossing(elements: int, ranks: int, nodes: int) -> Bytes:
        if exchange.traits.crosses is Crosses.FACTORS:
            elements = power_sgd_elements(shared, exchange.powersgd_rank)
        if exchange.is_torchs:
            size = HALF_BYTES if exchange.compression == "fp16" else element
            return all_reduce_bytes(elements * size, ranks, nodes)
        return crossing_bytes(exchange.compression, elements, element, ranks, nodes)

    def buckets(shapes: Sequence[torch.Size]) -> tuple[int, ...]:
        return bucket_sizes(shapes, exchange.bucket_bytes, element)

    return Sizes(
        nodes=anatomy.nodes,
        ranks_per_node=anatomy.ranks_per_node,
        images_per_rank=config.train.batch_size,
        passes=exchange.backward_passes_per_step,
        shared=anatomy.shared_elements,
        slices=tuple(crossing_rows(classes) * anatomy.per_class for classes in owned),
        features=anatomy.features,
        element_bytes=element,
        feature_bytes=2 if config.train.precision == "bf16" else element,
        crossing=crossing,
        pieces=exchange.pieces,
        slice_pieces=1 if drawn else exchange.slice_pace,
        buckets=buckets(shared),
        slice_buckets=tuple(buckets(anatomy.classifier(classes)) for classes in owned),
        label_bytes=8 if element == 8 else 4,
        statistic_bytes=element,
        statistics=3 + (config.classifier.label_smoothing > 0),
    )
