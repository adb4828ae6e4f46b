"""Builds the parts of a run and takes the steps."""

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from harness.config import Config
from harness.data.images import Dataset, OneAtATime
from harness.data.loader import Batch, train_batches
from harness.errors import UserError
from harness.exchange.exchange import make_exchange
from harness.exchange.torch_ddp import through_ddp
from harness.measure.phase import Phase
from harness.measure.summary import RunSummary
from harness.measure.utilisation import UNKNOWN, Capacity
from harness.model.network import Network
from harness.parallel.world import World
from harness.seeding import seed_default
from harness.tracing.gather import FOLDER as TRACES
from harness.tracing.gather import Tracing
from harness.train.assembly import assemble
from harness.train.checkpoint.checkpoint import Checkpoint
from harness.train.checkpoint.meta import STARTED, Meta
from harness.train.checkpoint.saves import Saves
from harness.train.checkpoint.states import optimizer_strips
from harness.train.course import course_of, what_changed
from harness.train.curvature import Curvature, runs_of
from harness.train.evaluation import (
    NONFINITE,
    average_statistics,
    averaged_statistics,
    distance,
    evaluate_sets,
)
from harness.train.finite import Watch, all_finite
from harness.train.ledger import Journal, Ledger
from harness.train.optimizer import make_optimizer
from harness.train.staleness import StalenessLedger
from harness.train.windows import traced_windows


class Trainer:
    """One training on one rank. Every method is collective over the world."""

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        world: World,
        folder: Path,
        capacity: Capacity = UNKNOWN,
    ) -> None:
        """`capacity`: what this rank's processor can do, operations of a window aside."""
        self._config = config
        # An estimate of the curvature reads while the thread that reads ahead does.
        self._dataset = replace(dataset, train=OneAtATime(dataset.train))
        self._world = world
        self._model = model = assemble(config, dataset, world)
        self.backbone, self.classifier = model.backbone, model.classifier
        self.shared, self.sliced = flats = model.shared, model.sliced
        self.optimizer = make_optimizer(config.optimizer, flats)
        checkpoint = Checkpoint(self.backbone, self.classifier, flats, self.optimizer, world)
        resume = config.train.resume
        with world.together():  # before DDP's constructor, in which ranks wait for each other
            self._saved = saved = checkpoint.load(Path(resume)) if resume else None
            self._first = first = saved.window if saved else 0
            if saved and not all_finite(model.numbers):
                raise UserError(
                    f"train.resume={resume} holds values that are not finite: its training had "
                    f"diverged by window {first}; resume an earlier one with a lower optimizer.lr"
                )
        network = Network(self.backbone, self.classifier)
        size = 2, dataset.channels, dataset.image_size, dataset.image_size
        through = through_ddp(
            config.exchange, network, world, self.shared, self.shared.values.new_zeros(size), first
        )
        self._network = through.network
        # DDP's hooks wait for what comes through autograd.
        self.classifier.in_place = not config.exchange.is_torchs
        self._curvature = Curvature(network, *flats, world, runs_of(config.train.precision))
        self.exchange = make_exchange(
            config.exchange,
            config.classifier,
            *flats,
            world,
            first,
            config.staleness.sample_every,
            through.errors,
        )
        carried = self.exchange.carried()
        self._left = checkpoint.load_carried(Path(resume), carried) if resume else []
        topology = world.topology
        self._course = course_of(
            config,
            len(dataset.train),
            topology.rank,
            topology.world_size,
            first,
            saved.passed if saved else None,
        )
        self.windows = self._course.windows
        if self._first >= self.windows:
            raise UserError(
                f"train.resume={resume} is at window {self._first} and the run ends at "
                f"{self.windows}; raise train.steps or train.epochs"
            )
        self._ledger = Ledger(
            config,
            world,
            self._course,
            replace(capacity, flop_per_window=model.flop_per_window()),
            saved.progress if saved else STARTED,
        )
        traced = traced_windows(config.trace, self._first, self.windows)
        self._tracing = Tracing(config.trace, traced, world, folder)
        warned = saved.next_warning if saved else None
        self._staleness = StalenessLedger(config, world, self._course, warned)
        self._saves = Saves(config.train, self.windows, folder, checkpoint)
        self._watch = Watch(self._course, world, flats, model.numbers)

    def train(self, journal: Journal) -> RunSummary:
        """All windows, with evaluations in between and, on the drained model, at the end.

        An evaluation leaves no trace in the training, and its time is not the training's.
        """
        self._say_what_changed(journal)
        batches = self.batches(self._first)
        self.backbone.train()
        self._staleness.begins(journal)
        if self._config.staleness.curvature_at_start or self._staleness.estimates(self._first):
            self._estimate_curvature(self._first, journal)
        self._ledger.begins(journal)
        for window in range(self._first, self.windows):
            if self._tracing.starts(window):
                with self._ledger.paused(window):
                    self._watch.settle(window, journal)
                    self._tracing.start()
            self.run_window(window, batches, journal)
            ended = window + 1
            if self._tracing.stops(ended):
                with self._ledger.paused(ended):
                    self._stop_tracing(ended, journal)
            if ended == self.windows:
                self._end(ended, journal)
            elif self._pauses(ended):
                with self._ledger.paused(ended):
                    self._pause(ended, journal)
        batches.close()
        return self._summary()

    def batches(self, window: int = 0) -> Generator[Batch, None, None]:
        """This rank's micro-batches from a window's first on."""
        return train_batches(
            self._dataset,
            self._course.shares,
            seed=self._config.seed,
            rank=self._world.topology.rank,
            device=self._world.device,
            augment=self._config.data.augment > 0,
            start=self._course.micro_batch(window),
            prefetch=self._config.data.prefetch,
        )

    def run_window(self, window: int, batches: Iterator[Batch], journal: Journal) -> None:
        """One window and its bookkeeping."""
        self._ledger.window_begins(window)
        with self._world.meters.clock.window():
            self._window(window, batches)
            self._watch.window_ended(window, journal)
        self._ledger.window_ended(window, journal)
        self._staleness.window_ended(window, self.exchange, journal)

    def _window(self, window: int, batches: Iterator[Batch]) -> None:
        clock, passes = self._world.meters.clock, self._config.exchange.backward_passes_per_step
        rank, device = self._world.topology.rank, self._world.device
        seed_default(self._config.seed, "window", window, rank, device=device)
        self._set_lr(self._course.lr(window))
        for number in range(passes):
            last = number == passes - 1
            if number % self.exchange.passes_per_step == 0:
                self.shared.grads.zero_()
                self.classifier.gradients_are_stale = True
            with clock.phase(Phase.DATA):
                images, labels = next(batches)
            with clock.phase(Phase.FORWARD), self._autocast():
                scores = self._network(self._cast(images), labels)
            with clock.phase(Phase.BACKWARD):
                (scores.loss / self.exchange.passes_per_step).backward()
            if self.exchange.after_backward(last):
                self._step()
                self.exchange.after_step()
            self._ledger.add_scores(scores.loss, scores.top1)
            self._watch.add_loss(scores.loss)

    def _step(self) -> None:
        with self._world.meters.clock.phase(Phase.OPTIMIZER):
            self._watch.add_gradients()
            self.optimizer.step()

    def evaluate(self, limit: int = 0) -> dict[str, float]:
        """`val/...` of the primary set and `val/<set>/...` of every one, of the mean over nodes.

        `limit`: images of each set; 0 takes all. Where nodes may differ, `exchange/distance` is how
        far they are from their mean, as a share of its norm.
        """
        with self.exchange.averaged() as squares, averaged_statistics(self.backbone, self._world):
            metrics = self._evaluate(limit)
        return metrics | distance(squares, self._world)

    def _evaluate(self, limit: int) -> dict[str, float]:
        with self._autocast():
            return evaluate_sets(
                Network(self.backbone, self.classifier),
                self._dataset.validation,
                self._world,
                dtype=self.shared.values.dtype,
                batch_size=self._config.train.batch_size,
                limit=limit,
            )

    def _pauses(self, ended: int) -> bool:
        return self._saves.due(ended) or self._evaluates(ended) or self._staleness.estimates(ended)

    def _evaluates(self, ended: int) -> bool:
        every = self._config.train.evaluate_every
        return ended == self.windows or bool(every and ended % every == 0)

    def _estimate_curvature(self, ended: int, journal: Journal) -> None:
        """At the mean over nodes, by the next micro-batches, which the training takes as ever.

        In the parameters' own precision: bf16 would leave nothing of a small difference.
        """
        products, seed = self._config.staleness.curvature_products, self._config.seed
        with closing(self.batches(ended)) as batches, self.exchange.averaged():
            taken = ((self._cast(images), labels) for images, labels in islice(batches, products))
            found = self._curvature.largest(taken, seed)
        self._staleness.estimated(ended, found, journal)

    def _pause(self, ended: int, journal: Journal) -> None:
        self._watch.settle(ended, journal)
        if self._staleness.estimates(ended):
            self._estimate_curvature(ended, journal)
        if not self._saves.due(ended):
            if self._evaluates(ended):
                limit = self._config.train.evaluate_images
                self._ledger.evaluated(ended, self.evaluate(limit), journal)
            return
        apart = self.exchange.apart()
        self.exchange.drain(self._step)
        self._judge_drained(ended, apart, journal)

    def _end(self, ended: int, journal: Journal) -> None:
        """What is under way when the last window ends is waited for in the training's time."""
        apart = self.exchange.apart()
        before = self._ledger.stopwatch.lap()
        self.exchange.drain(self._step)
        self._ledger.stopwatch.stop()
        self._ledger.drained(self._ledger.stopwatch.seconds - before)
        self._judge_drained(ended, apart, journal)

    def _judge_drained(
        self, ended: int, apart: Callable[[], Tensor] | None, journal: Journal
    ) -> None:
        """Saves and evaluates what is due, in this order: whatever an evaluation meets with, the
        model is there. How far nodes are apart is told of before the drain."""
        self._watch.settle(ended, journal)
        apart_before = distance(apart() if apart else None, self._world)
        if self._saves.due(ended):
            strips = optimizer_strips(self.optimizer, (self.shared, self.sliced))
            self.exchange.agree_on([strip.tensor for strip in strips if strip.tensor.dim()])
            average_statistics(self.backbone, self._world)
            self._saves.save(self._meta(ended), self.exchange.carried(), journal)
        metrics = apart_before
        if self._evaluates(ended):
            limit = 0 if ended == self.windows else self._config.train.evaluate_images
            metrics = self.evaluate(limit) | apart_before
            self._ledger.evaluated(ended, metrics, journal)
            if self._saves.due(ended):
                self._saves.rewrite(self._meta(ended), journal)
        elif apart_before:
            journal.log(ended, apart_before)
        if self._saves.due(ended) and not any(name.endswith(NONFINITE) for name in metrics):
            self._watch.saved(self._saves.last)

    def _meta(self, ended: int) -> Meta:
        return Meta(
            window=ended,
            num_classes=self._dataset.num_classes,
            progress=self._ledger.progress(),
            passed=self._course.passed(ended),
            next_warning=self._staleness.next_warning,
        )

    def check_saved(self) -> None:
        """Raises RunFailed where the run has ended and its model could not be saved."""
        self._saves.check_last()

    def _say_what_changed(self, journal: Journal) -> None:
        if self._saved is None:
            return
        if line := what_changed(self._course, self._saved.passed):
            journal.warn("resume", line)
        if self._left:
            left = ", ".join(self._left)
            line = f"{left} of the checkpoint is left out: this run's exchange carries none"
            journal.warn("resume_exchange", line)

    def _stop_tracing(self, ended: int, journal: Journal) -> None:
        # A collective of Gloo that ends after the profiler it began under writes into freed memory.
        self._watch.settle(ended, journal)
        for file in self._tracing.stop():
            journal.attach(file, TRACES)

    def _summary(self) -> RunSummary:
        model = self._model
        in_backbone = sum(parameter.numel() for parameter in self.backbone.parameters())
        in_classifier = self._dataset.num_classes * model.parameters_of_class
        summary = self._ledger.summary(in_backbone, in_classifier, model.expected_bytes())
        sizes = {name: len(source) for name, source in self._dataset.validation.items()}
        kept = ", later ".join(self.classifier.places)
        return summary.model_copy(update={"validation_images": sizes, "exponentials": kept})

    def _set_lr(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def _cast(self, images: Tensor) -> Tensor:
        return images.to(self.shared.values.dtype)

    def _autocast(self) -> AbstractContextManager[object]:
        if self._config.train.precision != "bf16":
            return nullcontext()
        return torch.autocast(self._world.device.type, torch.bfloat16)
