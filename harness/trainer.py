"""Builds the parts of a run and takes the steps."""

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from harness.checkpoint import STARTED, Checkpoint
from harness.config import Config
from harness.curvature import Curvature, runs_of
from harness.data.images import Dataset, OneAtATime
from harness.data.loader import Batch, train_batches
from harness.data.shares import Shares
from harness.errors import UserError
from harness.evaluation import average_statistics, distance, evaluate_sets
from harness.exchange.exchange import make_exchange, route_of
from harness.exchange.flat import Flat
from harness.exchange.torch_ddp import through_ddp
from harness.ledger import Journal, Ledger, expected_bytes
from harness.measure.phase import Phase
from harness.measure.summary import RunSummary
from harness.measure.utilisation import UNKNOWN, Capacity
from harness.model.backbone import make_backbone
from harness.model.flops import micro_batch_flops
from harness.model.network import Network
from harness.model.sliced_classifier import SlicedClassifier
from harness.optimizer import lr_at, make_optimizer
from harness.parallel.slices import slice_of
from harness.parallel.world import World
from harness.staleness import StalenessLedger
from harness.tracing import FOLDER as TRACES
from harness.tracing import Tracing
from harness.windows import traced_windows

DTYPES = {"fp32": torch.float32, "bf16": torch.float32, "fp64": torch.float64}


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
        self._folder = folder
        self._make_model()
        flats = self.shared, self.sliced
        self.optimizer = make_optimizer(config.optimizer, flats)
        self._checkpoint = Checkpoint(self.backbone, self.classifier, flats, self.optimizer, world)
        resume = config.train.resume
        saved = self._checkpoint.load(Path(resume)) if resume else None
        self._first = saved.window if saved else 0
        network = Network(self.backbone, self.classifier)
        self._network = through_ddp(config.exchange, network, world)
        runs = runs_of(config.train.precision)
        self._curvature = Curvature(network, *flats, world, runs)
        self.exchange = make_exchange(
            config.exchange,
            config.classifier,
            *flats,
            world,
            self._first,
            config.staleness.sample_every,
        )
        topology = world.topology
        ranks = topology.rank, topology.world_size
        self._shares = Shares(len(dataset.train), config.train.batch_size, *ranks, config.seed)
        self.windows = self._run_length()
        if self._first >= self.windows:
            raise UserError(
                f"train.resume={resume} is at window {self._first} and the run ends at "
                f"{self.windows}; raise train.steps or train.epochs"
            )
        images = self._shares.world_batch_size * config.exchange.backward_passes_per_step
        self._ledger = Ledger(
            config,
            world,
            self._first,
            self.windows,
            images,
            replace(capacity, flop_per_window=self._flop_per_window()),
            saved.progress if saved else STARTED,
        )
        traced = traced_windows(config.trace, self._first, self.windows)
        self._tracing = Tracing(config.trace, traced, world, folder)
        self._staleness = StalenessLedger(config, world, self.windows, self._first)

    def _make_model(self) -> None:
        """Backbone and classifier, their parameters in two flat tensors.

        `shared` is what all ranks of a node hold alike, `sliced` what only this one owns.
        """
        config, data, world = self._config, self._dataset, self._world
        dtype = DTYPES[config.train.precision]
        backbone = make_backbone(config.backbone, data.channels, data.image_size, config.seed)
        classifier = SlicedClassifier(
            backbone.features, data.num_classes, config.classifier, world.slices, config.seed
        )
        self.backbone = backbone.to(device=world.device, dtype=dtype)
        self.classifier = classifier.to(device=world.device, dtype=dtype)
        shared, sliced = list(backbone.parameters()), list(classifier.parameters())
        if config.classifier.layout == "replicated":
            shared, sliced = shared + sliced, []
        alone = route_of(config.exchange, config.classifier) == "hierarchical"
        owner = world.node.index if alone else None
        # PowerSGD takes gradients for matrices of filters, whose elements lie together.
        last = config.exchange.kind != "ddp_powersgd"
        self.shared = Flat(shared, world.node.size, shared[0], owner, channels_last=last)
        self.sliced = Flat(sliced, 1, shared[0])

    def _flop_per_window(self) -> float:
        config, data, batch = self._config, self._dataset, self._config.train.batch_size
        flops = micro_batch_flops(
            self.backbone,
            data.channels,
            data.image_size,
            images=batch,
            gathered=batch * self._world.slices.size,
            classes=len(self.classifier.weight),
        )
        return flops.total * config.exchange.backward_passes_per_step

    def _run_length(self) -> int:
        train = self._config.train
        if train.steps is not None:
            return train.steps
        assert train.epochs is not None
        passes = self._config.exchange.backward_passes_per_step
        return max(1, round(train.epochs * self._shares.micro_batches_per_epoch / passes))

    def train(self, journal: Journal) -> RunSummary:
        """All windows, with evaluations in between and, on the drained model, at the end.

        An evaluation leaves no trace in the training, and its time is not the training's.
        """
        torch.manual_seed(self._config.seed * 100_003 + self._world.topology.rank)
        batches = self.batches(self._first)
        self.backbone.train()
        self._staleness.begins(journal)
        if self._config.staleness.curvature_at_start or self._staleness.estimates(self._first):
            self._estimate_curvature(self._first, journal)
        self._ledger.begins(journal)
        for window in range(self._first, self.windows):
            if self._tracing.starts(window):
                with self._ledger.paused(window):
                    self._tracing.start()
            self.run_window(window, batches, journal)
            ended = window + 1
            if self._tracing.stops(ended):
                with self._ledger.paused(ended):
                    self._stop_tracing(journal)
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
            self._shares,
            seed=self._config.seed,
            rank=self._world.topology.rank,
            device=self._world.device,
            augment=self._config.data.augment > 0,
            start=window * self._config.exchange.backward_passes_per_step,
            prefetch=self._config.data.prefetch,
        )

    def run_window(self, window: int, batches: Iterator[Batch], journal: Journal) -> None:
        """One window and its bookkeeping."""
        self._ledger.window_begins(window)
        with self._world.meters.clock.window():
            self._window(window, batches)
        self._ledger.window_ended(window, journal)
        self._staleness.window_ended(window, self.exchange, journal)

    def _window(self, window: int, batches: Iterator[Batch]) -> None:
        clock, passes = self._world.meters.clock, self._config.exchange.backward_passes_per_step
        self._set_lr(lr_at(self._config.optimizer, window, self.windows))
        for number in range(passes):
            last = number == passes - 1
            if number % self.exchange.passes_per_step == 0:
                self.shared.grads.zero_()
                self.sliced.grads.zero_()
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

    def _step(self) -> None:
        with self._world.meters.clock.phase(Phase.OPTIMIZER):
            self.optimizer.step()

    def evaluate(self, limit: int = 0) -> dict[str, float]:
        """`val/...` of the primary set and `val/<set>/...` of every one, of the mean over nodes.

        `limit`: images of each set; 0 takes all. Where nodes may differ, `exchange/distance` is how
        far they are from their mean, as a share of its norm.
        """
        with self.exchange.averaged() as squares:
            average_statistics(self.backbone, self._world)
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
        return self._saves(ended) or self._evaluates(ended) or self._staleness.estimates(ended)

    def _evaluates(self, ended: int) -> bool:
        every = self._config.train.evaluate_every
        return ended == self.windows or bool(every and ended % every == 0)

    def _saves(self, ended: int) -> bool:
        train = self._config.train
        due = train.checkpoint_every and ended % train.checkpoint_every == 0
        return bool(due) or (train.save and ended == self.windows)

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
        if self._staleness.estimates(ended):
            self._estimate_curvature(ended, journal)
        if not self._saves(ended):
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
        self.exchange.drain(self._step)
        self._ledger.stopwatch.stop()
        self._judge_drained(ended, apart, journal)

    def _judge_drained(
        self, ended: int, apart: Callable[[], Tensor] | None, journal: Journal
    ) -> None:
        """Evaluates and saves what is due; how far nodes are apart is told of before the drain."""
        apart_before = distance(apart() if apart else None, self._world)
        if self._evaluates(ended):
            limit = 0 if ended == self.windows else self._config.train.evaluate_images
            self._ledger.evaluated(ended, self.evaluate(limit) | apart_before, journal)
        elif apart_before:
            journal.log(ended, apart_before)
        if self._saves(ended):
            average_statistics(self.backbone, self._world)
            folder = self._folder / "checkpoints" / f"{ended:09d}"
            self._checkpoint.save(folder, ended, self._ledger.progress())

    def _stop_tracing(self, journal: Journal) -> None:
        for file in self._tracing.stop():
            journal.attach(file, TRACES)

    def _summary(self) -> RunSummary:
        in_backbone = sum(parameter.numel() for parameter in self.backbone.parameters())
        per_class = self.classifier.weight.shape[1] + (self.classifier.bias is not None)
        in_classifier = self._dataset.num_classes * per_class
        topology, slices = self._world.topology, tuple[int, ...]()
        if self._config.classifier.layout == "node":
            owners = topology.ranks_per_node
            owned = [slice_of(self._dataset.num_classes, owners, n) for n in range(owners)]
            slices = tuple(each.size * per_class for each in owned)
        expected = expected_bytes(
            self._config,
            topology,
            shared=[parameter.shape for parameter, _, _ in self.shared.spans],
            slices=slices,
            features=self.backbone.features,
            element=self.shared.values.element_size(),
        )
        summary = self._ledger.summary(in_backbone, in_classifier, expected)
        sizes = {name: len(source) for name, source in self._dataset.validation.items()}
        return summary.model_copy(update={"validation_images": sizes})

    def _set_lr(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def _cast(self, images: Tensor) -> Tensor:
        return images.to(self.shared.values.dtype)

    def _autocast(self) -> AbstractContextManager[object]:
        if self._config.train.precision != "bf16":
            return nullcontext()
        return torch.autocast(self._world.device.type, torch.bfloat16)
