"""Builds the parts of a run and takes the steps."""

import time
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from harness.checkpoint import Checkpoint
from harness.config import Config
from harness.data.images import Dataset
from harness.data.loader import Batch, evaluation_batches, train_batches
from harness.data.shares import Shares
from harness.evaluation import average_statistics, evaluate
from harness.exchange.exchange import make_exchange, route_of
from harness.exchange.flat import Flat
from harness.measure.clock import Phase
from harness.measure.summary import Evaluation, RunSummary
from harness.measure.tally import Tally, Totals
from harness.measure.traffic import Bytes, Sizes, formula
from harness.model.backbone import make_backbone
from harness.model.sliced_classifier import SlicedClassifier
from harness.optimizer import lr_at, make_optimizer
from harness.parallel.world import Gathered, World

DTYPES = {"fp32": torch.float32, "bf16": torch.float32, "fp64": torch.float64}


class Journal(Protocol):
    """Where a run's metrics go; does nothing on ranks but the first."""

    def log(self, step: int, metrics: dict[str, float]) -> None: ...
    def advance(self, window: int, windows: int, note: str) -> None: ...


class Trainer:
    """One training on one rank. Every method is collective over the world."""

    def __init__(self, config: Config, dataset: Dataset, world: World, folder: Path) -> None:
        self._config = config
        self._dataset = dataset
        self._world = world
        self._folder = folder
        self._clock = world.meters.clock
        dtype, device = DTYPES[config.train.precision], world.device
        backbone = make_backbone(config.backbone, dataset.channels, dataset.image_size, config.seed)
        self.backbone = backbone.to(device=device, dtype=dtype)
        self.classifier = SlicedClassifier(
            backbone.features, dataset.num_classes, config.classifier, world.slices, config.seed
        ).to(device=device, dtype=dtype)
        self.shared, self.sliced = self._flatten()
        self.optimizer = make_optimizer(config.optimizer, (self.shared, self.sliced))
        self._checkpoint = Checkpoint(
            self.backbone, self.classifier, (self.shared, self.sliced), self.optimizer, world
        )
        resume = config.train.resume
        self._first = self._checkpoint.load(Path(resume)) if resume else 0
        self.exchange = make_exchange(
            config.exchange, config.classifier, self.shared, self.sliced, world, self._first
        )
        self._shares = Shares(
            len(dataset.train),
            config.train.batch_size,
            world.topology.rank,
            world.topology.world_size,
            config.seed,
        )
        self.windows = self._run_length()
        self._run, self._interval = Tally(), Tally()
        self._under_way: tuple[int, Gathered] | None = None
        self._evaluations: list[Evaluation] = []
        self._train_seconds = 0.0
        self._timed_from = 0.0

    def _flatten(self) -> tuple[Flat, Flat]:
        """What all ranks of a node share, and what only this one owns."""
        shared, sliced = list(self.backbone.parameters()), list(self.classifier.parameters())
        if self._config.classifier.layout == "replicated":
            shared, sliced = shared + sliced, []
        node_size = self._world.node.size
        return Flat(shared, node_size, shared[0]), Flat(sliced, 1, shared[0])

    def _run_length(self) -> int:
        train = self._config.train
        if train.steps is not None:
            return train.steps
        assert train.epochs is not None
        passes = self._config.exchange.backward_passes_per_step
        return max(1, round(train.epochs * self._shares.micro_batches_per_epoch / passes))

    @property
    def images_per_window(self) -> int:
        return self._shares.world_batch_size * self._config.exchange.backward_passes_per_step

    def train(self, journal: Journal) -> RunSummary:
        """All windows, with evaluations on the drained model in between and at the end."""
        train, first = self._config.train, self._first
        torch.manual_seed(self._config.seed * 100_003 + self._world.topology.rank)
        batches = self.batches(first)
        self.backbone.train()
        started = self._now()
        for window in range(first, self.windows):
            if window == first + train.untimed_windows:
                started = self._lap(started)
                self._timed_from = self._train_seconds
            self.run_window(window, batches, window >= first + train.untimed_windows, journal)
            ended = window + 1
            if self._pauses(ended):
                self.drain()
                started = self._lap(started)
                self._pause(ended, journal)
                started = self._now()
        batches.close()
        return self._summary()

    def run_window(
        self, window: int, batches: Iterator[Batch], timed: bool, journal: Journal
    ) -> None:
        """One window with its bookkeeping; `timed` says whether it counts in the summary."""
        with self._clock.window():
            self._window(window, batches)
        self._account(timed)
        ended = window + 1
        if ended % self._config.train.log_every == 0 or ended == self.windows:
            self._log(ended, journal)

    def batches(self, first_window: int) -> Generator[Batch, None, None]:
        """This rank's micro-batches from a window on."""
        passes = self._config.exchange.backward_passes_per_step
        return train_batches(
            self._dataset,
            self._shares,
            seed=self._config.seed,
            rank=self._world.topology.rank,
            device=self._world.device,
            augment=self._config.data.augment > 0,
            start=first_window * passes,
            prefetch=self._config.data.prefetch,
        )

    def _window(self, window: int, batches: Iterator[Batch]) -> None:
        clock, passes = self._clock, self._config.exchange.backward_passes_per_step
        self._set_lr(lr_at(self._config.optimizer, window, self.windows))
        self._sent_before = self._world.meters.traffic.total
        for number in range(passes):
            last = number == passes - 1
            if number % self.exchange.passes_per_step == 0:
                self.shared.grads.zero_()
                self.sliced.grads.zero_()
            with clock.phase(Phase.DATA):
                images, labels = next(batches)
            with clock.phase(Phase.FORWARD), self._autocast():
                scores = self.classifier(self.backbone(self._cast(images)), labels)
            with clock.phase(Phase.BACKWARD):
                (scores.loss / self.exchange.passes_per_step).backward()
            if self.exchange.after_backward(last):
                self._step()
            self.exchange.after_step(last)
            self._interval.add_scores(scores.loss, scores.top1)

    def _step(self) -> None:
        with self._clock.phase(Phase.OPTIMIZER):
            self.optimizer.step()

    def drain(self) -> None:
        """Applies all exchanges under way and makes the model one: what may be judged or kept."""
        self.exchange.drain(self._step)
        average_statistics(self.backbone, self._world)

    def evaluate(self, limit: int) -> dict[str, float]:
        """`val/...` of the primary set and `val/<set>/...` of every one, on the drained model."""
        metrics: dict[str, float] = {}
        topology = self._world.topology
        for number, (name, source) in enumerate(self._dataset.validation.items()):
            batches = evaluation_batches(
                source,
                rank=topology.rank,
                world_size=topology.world_size,
                batch_size=4 * self._config.train.batch_size,
                device=self._world.device,
                limit=limit,
            )
            cast = ((self._cast(images), labels, valid) for images, labels, valid in batches)
            with self._autocast():
                found = evaluate(self.backbone, self.classifier, cast, self._world)
            metrics |= {f"val/{name}/{key}": value for key, value in found.items()}
            if number == 0:
                metrics |= {f"val/{key}": value for key, value in found.items()}
        return metrics

    def _pauses(self, ended: int) -> bool:
        train = self._config.train
        every = [each for each in (train.evaluate_every, train.checkpoint_every) if each]
        return ended == self.windows or any(ended % each == 0 for each in every)

    def _pause(self, ended: int, journal: Journal) -> None:
        train, final = self._config.train, ended == self.windows
        if final or (train.evaluate_every and ended % train.evaluate_every == 0):
            metrics = self.evaluate(0 if final else train.evaluate_images)
            images = ended * self.images_per_window
            self._evaluations.append(
                Evaluation(
                    window=ended,
                    images=images,
                    train_seconds=self._train_seconds,
                    metrics=metrics,
                )
            )
            journal.log(ended, metrics)
        due = train.checkpoint_every and ended % train.checkpoint_every == 0
        if due or (final and train.save):
            self._checkpoint.save(self._folder / "checkpoints" / f"{ended:09d}", ended)

    def _account(self, timed: bool) -> None:
        times = self._clock.read()
        sent = self._world.meters.traffic.total - self._sent_before
        for tally in (self._run, self._interval) if timed else (self._interval,):
            tally.add_times(times)
            tally.add_bytes(sent)

    def _log(self, ended: int, journal: Journal) -> None:
        """Sends this interval's tally on its way and logs the one before: nobody waits for it."""
        self._log_under_way(journal)
        gathered = self._world.launch_gather(self._interval.vector(), "interval")
        self._under_way = (ended, gathered)
        self._interval = Tally()
        if ended == self.windows:
            self._log_under_way(journal)

    def _log_under_way(self, journal: Journal) -> None:
        if self._under_way is None:
            return
        ended, gathered = self._under_way
        self._under_way = None
        totals = Totals(gathered.wait(), self._world.topology.nodes)
        metrics = totals.metrics()
        metrics["optimizer/lr"] = lr_at(self._config.optimizer, ended - 1, self.windows)
        rate = self.images_per_window / totals.step_ms.mean * 1e3 if totals.windows else 0.0
        metrics["throughput/images_per_second"] = rate
        journal.log(ended, metrics)
        journal.advance(ended, self.windows, f"loss {totals.loss:.3f} · {rate:.0f} images/s")

    def _summary(self) -> RunSummary:
        gathered = self._world.launch_gather(self._run.vector(), "summary").wait()
        topology, config = self._world.topology, self._config
        totals = Totals(gathered, topology.nodes)
        untimed = min(config.train.untimed_windows, self.windows - self._first)
        timed = self.windows - self._first - untimed
        seconds = self._train_seconds - self._timed_from
        expected = self.expected_bytes()
        return RunSummary(
            name=config.name,
            seed=config.seed,
            ranks=topology.world_size,
            nodes=topology.nodes,
            windows=self.windows,
            images=self.windows * self.images_per_window,
            parameters_backbone=sum(p.numel() for p in self.backbone.parameters()),
            parameters_classifier=self._classifier_parameters(),
            images_per_second=timed * self.images_per_window / seconds if timed else 0.0,
            untimed_windows=untimed,
            timed_windows=timed,
            step_ms=totals.step_ms,
            phases_ms=totals.phases_ms,
            cross_node_mb_per_step=totals.cross_node_mb,
            cross_node_mb_per_step_formula=expected.cross_node * topology.ranks_per_node / 1e6,
            in_node_mb_per_step=totals.in_node_mb,
            in_node_mb_per_step_formula=expected.in_node / 1e6,
            train_seconds=self._train_seconds,
            evaluations=tuple(self._evaluations),
            mlflow_run_id=None,
            commit=None,
        )

    def _classifier_parameters(self) -> int:
        with_bias = self.classifier.bias is not None
        return self._dataset.num_classes * (self.classifier.weight.shape[1] + with_bias)

    def expected_bytes(self) -> Bytes:
        """What a window sends by formula; the counted bytes must equal it."""
        config, topology = self._config, self._world.topology
        element = self.shared.values.element_size()
        route = route_of(config.exchange, config.classifier)
        sizes = Sizes(
            nodes=topology.nodes,
            ranks_per_node=topology.ranks_per_node,
            images_per_rank=config.train.batch_size,
            passes=config.exchange.backward_passes_per_step,
            shared=self.shared.elements,
            sliced=self._classifier_parameters() if self.sliced.elements else 0,
            features=self.backbone.features,
            element_bytes=element,
            feature_bytes=2 if config.train.precision == "bf16" else element,
            label_bytes=8 if element == 8 else 4,
            statistic_bytes=element,
        )
        return formula(config.classifier.layout, config.exchange.kind, route, sizes)

    def _set_lr(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def _cast(self, images: Tensor) -> Tensor:
        return images.to(self.shared.values.dtype)

    def _autocast(self) -> AbstractContextManager[object]:
        if self._config.train.precision != "bf16":
            return nullcontext()
        return torch.autocast(self._world.device.type, torch.bfloat16)

    def _lap(self, started: float) -> float:
        """Adds the time since `started` to the training time; the start of the next lap."""
        now = self._now()
        self._train_seconds += now - started
        return now

    def _now(self) -> float:
        if self._world.device.type == "cuda":
            torch.cuda.synchronize(self._world.device)
        return time.perf_counter()
