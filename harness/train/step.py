"""Runs the windows of one training: micro-batches, the exchange and the optimizer's steps."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from harness.config import Config
from harness.data.balance import balance_of
from harness.data.images import Dataset, OneAtATime
from harness.data.loader import Augmentation, Batch, train_batches
from harness.errors import UserError
from harness.exchange.exchange import Exchange, make_exchange
from harness.exchange.torch_ddp import through_ddp
from harness.measure.phase import Phase
from harness.model.anatomy import autocast
from harness.model.sliced_classifier import Scores
from harness.parallel.world import World
from harness.seeding import seed_default
from harness.train.assembly import Assembly, assemble
from harness.train.checkpoint.checkpoint import Checkpoint
from harness.train.checkpoint.meta import STARTED, Meta, check_resumed_names, resumed_meta
from harness.train.course import Course, course_of
from harness.train.dropping import Dropper
from harness.train.finite import Watch, all_finite
from harness.train.ledger import Journal
from harness.train.optimizer import Optimizer, make_optimizer, set_lr
from harness.train.windows import check_traced


@dataclass(frozen=True, eq=False)
class Step:
    """Everything one rank needs to run windows. Every method is collective over the world."""

    model: Assembly
    network: nn.Module
    """What forward passes go through: the network, or DistributedDataParallel around it."""
    optimizer: Optimizer
    exchange: Exchange
    course: Course
    watch: Watch
    checkpoint: Checkpoint
    """Writes and reads the model and the optimizer's state."""
    resumed: Meta | None = None
    """Metadata of the checkpoint that the training resumes from."""
    left_out: tuple[str, ...] = ()
    """State of the checkpoint's exchange that this run's exchange cannot use."""
    dropper: Dropper | None = None
    """Drops steps that are not finite; None: the watch ends the run."""

    @property
    def config(self) -> Config:
        return self.model.config

    @property
    def world(self) -> World:
        return self.model.world

    def batches(self, window: int = 0) -> Generator[Batch, None, None]:
        """This rank's micro-batches, starting with the first of `window`."""
        return micro_batches(self.model.data, self.course, self.world, window)

    def window(self, window: int, batches: Iterator[Batch], journal: Journal) -> list[Scores]:
        """Trains one window. Returns the scores of its micro-batches, on the device.

        Raises Diverged, on all ranks, if numbers of this window or of one shortly before it are not
        finite.
        """
        with self.world.meters.clock.window():
            dropped = self.dropper.dropped if self.dropper else 0
            scores = self._micro_batches(window, batches)
            if self.dropper and self.dropper.dropped > dropped:
                journal.log(window + 1, {"train/dropped_steps": float(self.dropper.dropped)})
            self.watch.window_ended(window, journal)
        return scores

    def _micro_batches(self, window: int, batches: Iterator[Batch]) -> list[Scores]:
        clock, passes = self.world.meters.clock, self.config.exchange.backward_passes_per_step
        rank, device = self.world.topology.rank, self.world.device
        seed_default(self.config.seed, "window", window, rank, device=device)
        set_lr(self.optimizer, self.course.lr(window))
        found: list[Scores] = []
        for number in range(passes):
            if number % self.exchange.passes_per_step == 0:
                self._step_begins()
                kept = len(found)
            self.model.classifier.micro_batch = window * passes + number
            with clock.phase(Phase.DATA):
                images, labels = next(batches)
            with clock.phase(Phase.FORWARD), self.autocast():
                scores = self.network(self.cast(images), labels)
            with clock.phase(Phase.BACKWARD):
                (scores.loss / self.exchange.passes_per_step).backward()
            # Detached: the graph would keep its memory until the window ends.
            found.append(Scores(scores.loss.detach(), scores.top1.detach()))
            ends_step = (number + 1) % self.exchange.passes_per_step == 0
            if not self._step(window, ends_step, last=number == passes - 1, scores=found[kept:]):
                del found[kept:]
        for each in found:
            self.watch.add_loss(each.loss)
        return found

    def _step_begins(self) -> None:
        self.model.shared.grads.zero_()
        self.model.classifier.gradients_are_stale = True
        if self.dropper:
            self.dropper.step_begins()

    def _step(self, window: int, ends_step: bool, last: bool, scores: Sequence[Scores]) -> bool:
        """Steps if the exchange has gradients for it. Returns False if this step's own, from these
        micro-batches, are dropped."""
        exchange, judges = self.exchange, self.dropper is not None and ends_step
        sent = exchange.averages_in_backward
        ready = exchange.gradients_ready(last) if sent or not judges else False
        good = not judges or self._accepted(window, scores)
        if judges and not sent:
            ready = exchange.gradients_ready(last) if good else exchange.dropped()
        if ready and (good or not sent):
            self.update()
            exchange.after_step()
        return good

    def _accepted(self, window: int, scores: Sequence[Scores]) -> bool:
        assert self.dropper is not None
        return self.dropper.accepts(window, [each.loss for each in scores])

    def update(self) -> None:
        """One optimizer step with the current gradients."""
        with self.world.meters.clock.phase(Phase.OPTIMIZER):
            self.watch.add_gradients()
            self.optimizer.step()

    def cast(self, images: Tensor) -> Tensor:
        """The images in the parameters' precision."""
        return images.to(self.model.shared.values.dtype)

    def autocast(self) -> torch.autocast:
        return autocast(self.config.train.precision, self.world.device)


def micro_batches(
    dataset: Dataset, course: Course, world: World, window: int = 0
) -> Generator[Batch, None, None]:
    """This rank's micro-batches, starting with the first of `window`."""
    config = course.config
    augmentation = Augmentation(config.seed, world.topology.rank)
    return train_batches(
        dataset,
        course.shares,
        augmentation=augmentation if config.data.augment else None,
        device=world.device,
        start=course.micro_batch(window),
        prefetch=config.data.prefetch,
    )


def make_step(config: Config, dataset: Dataset, world: World, goes_on: bool = False) -> Step:
    """Builds a Step, from the checkpoint that the config resumes or else from its seed.

    `goes_on`: the checkpoint is the run's own, which may have no window left, or none to trace.
    Raises UserError if the checkpoint does not fit, or if another run's has already reached the end
    of this one.
    Collective over the world.
    """
    # The estimate of the curvature reads images while the prefetching thread does.
    data = replace(dataset, train=OneAtATime(dataset.train))
    model = assemble(config, data, world)
    optimizer = make_optimizer(
        config.optimizer, model.flats, model.drawn, loaded=config.backbone.lr_factor
    )
    checkpoint = Checkpoint(model.backbone, model.classifier, model.flats, optimizer, world)
    resumed = _resumed(checkpoint, model)
    course = _course(model, resumed)
    if goes_on:
        course = replace(course, windows=max(course.first, course.windows))
    else:
        _check_length(course)
    network, exchange = _connected(model, course.first)
    left_out: list[str] = []
    if config.train.resume and resumed:
        folder = Path(config.train.resume)
        with world.together():
            left_out = checkpoint.load_carried(folder, resumed, exchange.carried())
    return Step(
        model,
        network,
        optimizer,
        exchange,
        course,
        Watch(course, world, model.flats, model.numbers, model.drawn),
        checkpoint,
        resumed,
        tuple(left_out),
        _dropper(model, exchange, resumed),
    )


def _dropper(model: Assembly, exchange: Exchange, resumed: Meta | None) -> Dropper | None:
    if model.config.train.on_nonfinite != "skip":
        return None
    return Dropper(model, exchange, resumed.progress if resumed else STARTED)


def _check_length(course: Course) -> None:
    if course.first >= course.windows:
        raise UserError(
            f"train.resume={course.config.train.resume} is at window {course.first} and the run "
            f"ends at {course.windows}; raise train.steps or train.epochs"
        )
    check_traced(course.config.trace, course.first, course.windows)


def _resumed(checkpoint: Checkpoint, model: Assembly) -> Meta | None:
    """Loads the checkpoint that the config resumes; None if it resumes none.

    Collective over the world. This must come before DistributedDataParallel's constructor, in which
    ranks wait for each other: a rank that cannot read its part then ends all of them.
    """
    resume = model.config.train.resume
    with model.world.together():
        found = resumed_meta(model.config)
        if resume and found:
            check_resumed_names(model.config, found, model.data.class_names)
            checkpoint.load(Path(resume), found)
        if found and not all_finite(model.numbers):
            raise UserError(
                f"train.resume={resume} contains values that are not finite: its training had "
                f"diverged by window {found.window}; resume an earlier checkpoint with a lower "
                f"optimizer.lr"
            )
    return found


def _course(model: Assembly, resumed: Meta | None) -> Course:
    topology = model.world.topology
    return course_of(
        model.config,
        len(model.data.train),
        topology.rank,
        topology.world_size,
        resumed.window if resumed else 0,
        resumed.passed if resumed else None,
        balance_of(model.data.train.labels, model.config.data.class_balance, model.config.seed),
    )


def _connected(model: Assembly, first_window: int) -> tuple[nn.Module, Exchange]:
    """The network that forward passes use, and the exchange of its gradients or values.

    Collective over the world.
    """
    config, world, data = model.config, model.world, model.data
    size = 2, data.channels, data.image_size, data.image_size
    images = model.shared.values.new_zeros(size)
    through = through_ddp(config.exchange, model.network, world, model.shared, images, first_window)
    # DDP's hooks only see gradients that come through autograd.
    model.classifier.in_place = not config.exchange.is_torchs
    exchange = make_exchange(
        config.exchange,
        model.of_rank,
        world,
        first_window,
        config.staleness.sample_every,
        through.errors,
        partial(model.classifier.rows_of_window, config.exchange.backward_passes_per_step),
    )
    return through.network, exchange
