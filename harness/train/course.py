"""The course of a run: its length, its images and its learning rate, window by window."""

from dataclasses import dataclass, replace
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from harness.config import Config
from harness.data.balance import Balance
from harness.data.shares import BatchSplit, Place
from harness.train.optimizer import lr_at, scheduled_lr

COUNTED = Field(ge=0, le=2**53)


class Passed(BaseModel):
    """Progress of a training when its checkpoint was written, and the settings it had until
    then."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: int = COUNTED
    """Training images of all ranks."""
    epoch: int = COUNTED
    epoch_images: int = COUNTED
    """Images of this epoch's order that come before the next image."""
    warmup_images: int | None = Field(ge=0, le=2**53)
    """Training images when the warm-up ended; None if it had not ended."""
    training_images: int = COUNTED
    """Training images in the data set."""
    ranks: int = COUNTED
    batch_size: int = COUNTED
    """Images per rank in a backward pass."""
    passes: int = COUNTED
    """Backward passes per window."""
    seed: int = Field(ge=0)
    pieces: int = Field(default=1, ge=1, le=2**53)
    """`exchange.pieces`, which may have been chosen from measured times."""
    route: Literal["flat", "hierarchical"] | None = None
    """`exchange.route`, which may have been measured too. None if the exchange has no route, or if
    the checkpoint is older than this field."""

    @property
    def images_per_window(self) -> int:
        return self.ranks * self.batch_size * self.passes


@dataclass(frozen=True)
class Course:
    """Windows `first` .. `windows` - 1 of a run, with their images and learning rates.

    A resumed run continues the window numbers of its checkpoint. How many windows remain depends on
    the unit of its length: `train.steps` counts windows, however many images they take;
    `train.epochs` counts passes over the images, so smaller windows make more of them. The schedule
    of the learning rate follows the same unit; the warm-up is always counted in windows.
    """

    config: Config
    shares: BatchSplit
    first: int
    windows: int
    """Number of windows when the run ends."""
    images_before: int
    warmup_images: int
    """Training images of all runs when the warm-up ends."""

    @property
    def images_per_window(self) -> int:
        return self.shares.world_batch_size * self.config.exchange.backward_passes_per_step

    def images(self, window: int) -> int:
        """Training images of all ranks, in all runs, after `window` windows."""
        return self.images_before + (window - self.first) * self.images_per_window

    def micro_batch(self, window: int) -> int:
        """The number of a window's first micro-batch; see `BatchSplit`."""
        passes = self.config.exchange.backward_passes_per_step
        return self.shares.first + (window - self.first) * passes

    def lr(self, window: int) -> float:
        """Learning rate of this window."""
        optimizer = self.config.optimizer
        if self.config.train.epochs is None:
            return lr_at(optimizer, window, self.windows)
        # Both terms are whole multiples of the window's n images while all windows take n, so n
        # cancels exactly and the quotient equals (windows done) / (windows) to the bit.
        span = max(1, self.images(self.windows) - self.warmup_images)
        return scheduled_lr(optimizer, window, (self.images(window) - self.warmup_images) / span)

    def passed(self, window: int) -> Passed:
        """Progress after `window` windows, as a checkpoint stores it."""
        place = self.shares.place(self.micro_batch(window))
        warm = window >= self.config.optimizer.warmup_windows
        return Passed(
            images=self.images(window),
            epoch=place.epoch,
            epoch_images=place.images,
            warmup_images=self.warmup_images if warm else None,
            training_images=self.shares.length,
            ranks=self.shares.world_size,
            batch_size=self.shares.batch_size,
            passes=self.config.exchange.backward_passes_per_step,
            seed=self.shares.seed,
            pieces=self.config.exchange.pieces,
            route=None if self.config.exchange.route == "auto" else self.config.exchange.route,
        )


def course_of(
    config: Config,
    length: int,
    rank: int,
    ranks: int,
    first: int = 0,
    passed: Passed | None = None,
    balance: Balance | None = None,
) -> Course:
    """The course of one rank's run over `length` training images, from window `first` on.

    `passed` is the progress of the checkpoint. A checkpoint older than that field has none; its
    windows are then assumed to have had this run's size.
    """
    batch_size, passes = config.train.batch_size, config.exchange.backward_passes_per_step
    new = BatchSplit(length, batch_size, rank, ranks, config.seed, balance=balance)
    per_window = new.world_batch_size * passes
    before = passed.images if passed else first * per_window
    place = Place(passed.epoch, passed.epoch_images) if passed else new.place(first * passes)
    shares = replace(new, begun=place)
    warmup_images = before + (config.optimizer.warmup_windows - first) * per_window
    if passed and config.optimizer.warmup_windows <= first:
        warmup_images = before if passed.warmup_images is None else passed.warmup_images
    if config.train.epochs is None:
        assert config.train.steps is not None
        windows = config.train.steps
    else:
        whole = max(1, round(config.train.epochs * shares.micro_batches_per_epoch / passes))
        windows = first + whole - shares.first // passes
    return Course(config, shares, first, windows, before, warmup_images)


def what_changed(course: Course, passed: Passed | None) -> str:
    """One line on the settings that a resumed run changes; "" if none."""
    if passed is None:
        return (
            f"the checkpoint does not record how many images it has seen; its {course.first} "
            f"windows are assumed to have {course.images_per_window} images each, as in this run"
        )
    now = course.passed(course.first)
    names = {
        "ranks": "ranks",
        "train.batch_size": "batch_size",
        "exchange.backward_passes_per_step": "passes",
        "seed": "seed",
        "training images": "training_images",
    }
    changed = [
        f"{name} {getattr(now, field)} instead of {getattr(passed, field)}"
        for name, field in names.items()
        if getattr(now, field) != getattr(passed, field)
    ]
    if not changed:
        return ""
    line = f"resumed at window {course.first}, after {passed.images} images, with "
    line += f"{', '.join(changed)}: "
    if (now.seed, now.training_images) != (passed.seed, passed.training_images):
        line += (
            "the order of images changes, so in this epoch some are seen twice and others never; "
        )
    return line + (
        f"a window takes {now.images_per_window} images, before it took {passed.images_per_window}"
        f"; the run ends at window {course.windows}, after {course.images(course.windows)} images"
    )
