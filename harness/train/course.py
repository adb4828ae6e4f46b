"""The course of a run: its length, its images and its learning rate, window by window."""

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from harness.config import Config
from harness.data.shares import Place, Shares
from harness.train.optimizer import lr_at, scheduled_lr

COUNTED = Field(ge=0, le=2**53)


class Passed(BaseModel):
    """How far a training had come when its checkpoint was written, in images, and by what numbers
    it had come there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: int = COUNTED
    """Training images of all ranks."""
    epoch: int = COUNTED
    epoch_images: int = COUNTED
    """Of this epoch's order, those before the next image."""
    warmup_images: int | None = Field(ge=0, le=2**53)
    """Images after which the warm-up had ended; none: it had not."""
    training_images: int = COUNTED
    """In the data set."""
    ranks: int = COUNTED
    batch_size: int = COUNTED
    """Images of a rank in a backward pass."""
    passes: int = COUNTED
    """Backward passes in a window."""
    seed: int = Field(ge=0)
    pieces: int = Field(default=1, ge=1, le=2**53)
    """`exchange.pieces`, which may have been picked from measured times."""
    route: Literal["flat", "hierarchical"] | None = None
    """`exchange.route`, which may have been picked too; None: of an exchange without one, or not
    known, of a checkpoint that is older than this field."""

    @property
    def images_per_window(self) -> int:
        return self.ranks * self.batch_size * self.passes


@dataclass(frozen=True)
class Course:
    """Windows `first` .. `windows` - 1, by which images they go on, and how far they lead.

    A resumed run counts windows on from its checkpoint's. How many are left depends on what its
    length is given in: `train.steps` are windows, however many images they take; `train.epochs` are
    passes over the images, so that a run with smaller windows makes more of them. The schedule of
    the learning rate goes by the same measure, and the warm-up by windows.
    """

    config: Config
    shares: Shares
    first: int
    windows: int
    """The window it ends before."""
    images_before: int
    warmup_images: int
    """Training images, of all runs, when the warm-up ends."""

    @property
    def images_per_window(self) -> int:
        return self.shares.world_batch_size * self.config.exchange.backward_passes_per_step

    def images(self, window: int) -> int:
        """Training images of all ranks, in all runs, after so many windows."""
        return self.images_before + (window - self.first) * self.images_per_window

    def micro_batch(self, window: int) -> int:
        """The number of a window's first micro-batch; see `Shares`."""
        passes = self.config.exchange.backward_passes_per_step
        return self.shares.first + (window - self.first) * passes

    def lr(self, window: int) -> float:
        """Learning rate of a window."""
        optimizer = self.config.optimizer
        if self.config.train.epochs is None:
            return lr_at(optimizer, window, self.windows)
        # Quotients of whole numbers: n cancels to the bit while all windows take n images.
        span = max(1, self.images(self.windows) - self.warmup_images)
        return scheduled_lr(optimizer, window, (self.images(window) - self.warmup_images) / span)

    def passed(self, window: int) -> Passed:
        """What a checkpoint says of the training after so many windows."""
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
    config: Config, length: int, rank: int, ranks: int, first: int = 0, passed: Passed | None = None
) -> Course:
    """Of a rank's run over `length` training images, from a checkpoint of window `first` on.

    Without `passed`, of a checkpoint that is older than it, the windows before are taken for such
    as this run's own.
    """
    batch_size, passes = config.train.batch_size, config.exchange.backward_passes_per_step
    new = Shares(length, batch_size, rank, ranks, config.seed)
    per_window = new.world_batch_size * passes
    before = passed.images if passed else first * per_window
    place = Place(passed.epoch, passed.epoch_images) if passed else new.place(first * passes)
    shares = Shares(length, batch_size, rank, ranks, config.seed, place)
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
    """One line on what a resumed run does otherwise than the one before; empty: nothing."""
    if passed is None:
        return (
            f"the checkpoint is older than the count of images: its {course.first} windows are "
            f"taken for windows of {course.images_per_window} images, as this run's are"
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
        line += "images come in another order, so some of this epoch come twice and others not; "
    return line + (
        f"a window takes {now.images_per_window} images and took {passed.images_per_window}, "
        f"the run ends at window {course.windows} with {course.images(course.windows)} images"
    )
