"""Section `train`: length, precision, device, evaluations and checkpoints of a run."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from harness.config.section import PathText, Section
from harness.config.sections.values import MAX_COUNT, PerHost


class TrainConfig(Section):
    batch_size: int = Field(default=32, ge=1, le=10**9)
    """Images per rank per backward pass."""
    steps: int | None = Field(default=None, ge=1, le=MAX_COUNT)
    """Length of the run, windows. Give either this or `epochs`."""
    epochs: float | None = Field(default=None, gt=0, le=10**6)
    """Length of the run, passes over the training images."""
    precision: Literal["fp32", "bf16", "fp64"] = "fp32"
    """bf16 runs the backbone and the logits under autocast; fp64 is for exactness."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU of the local rank if there is one, else the CPU."""
    threads: Annotated[int, PerHost()] = Field(default=0, ge=0, le=1024)
    """CPU threads of a rank; 0 divides the cores of the machine among its ranks."""
    evaluate_every: int = Field(default=0, ge=0, le=MAX_COUNT)
    """Windows between evaluations; 0 evaluates at the end only."""
    evaluate_images: int = Field(default=0, ge=0, le=MAX_COUNT)
    """Images of each validation set in all evaluations but the last, which uses all; 0 uses all."""
    untimed_windows: int = Field(default=10, ge=0, le=MAX_COUNT)
    """First windows left out of throughput and times (caches, allocators and pools warm up)."""
    log_every: int = Field(default=10, ge=1, le=MAX_COUNT)
    """Windows between two lines of metrics."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What happens if the loss, gradient norm or parameters are not finite after a window. stop:
    all ranks end the run as failed, and the last good checkpoint is kept. skip: a step whose loss
    or gradient is not finite on some rank is dropped on all of them, which costs a wait in each
    step; five in a row, or parameters that are not finite, end the run."""
    stuck_seconds: float = Field(default=60, ge=0, le=10**6)
    """Seconds after which a rank that does not move, while others wait for it, is named, and all
    ranks are ended. Ten times as long in the first window and while training pauses, for instance
    to evaluate. 0 never ends them. Only `harness launch` and `compare` look for such ranks."""
    check_collectives: int = Field(default=0, ge=0, le=MAX_COUNT)
    """Windows between two checks that the ranks of each group have launched the same collectives,
    of the same types and shapes, in the same order; 0 checks never, and costs nothing. If they have
    not, all ranks end with a line that names the first that differs. If a collective never ends,
    the last ones of all ranks are told (`stuck_seconds`)."""
    checkpoint_every: int = Field(default=0, ge=0, le=MAX_COUNT)
    """Windows between checkpoints; 0 writes none, or with `save` only the last."""
    keep_checkpoints: int = Field(default=0, ge=0, le=MAX_COUNT)
    """Good checkpoints of a run that are kept, the last ones; 0 keeps all. An older one is removed
    once a newer one is complete on the disk."""
    save: bool = False
    """Write the drained model into the run's folder at the end."""
    resume: Annotated[PathText | None, PerHost()] = None
    """Checkpoint to resume from, or a run for its newest good one, written by any number of ranks.
    With another number of ranks, batch size or K the order of images goes on; `steps` counts
    windows, `epochs` images."""
    matmul_seconds: float = Field(default=0.3, ge=0, le=3600)
    """Seconds of plain matrix products on all ranks before training, to which the FLOP/s of the
    training are compared; 0 disables them."""

    @property
    def saves(self) -> bool:
        """Whether the run writes checkpoints."""
        return self.save or self.checkpoint_every > 0

    @model_validator(mode="after")
    def _one_length(self) -> "TrainConfig":
        if (self.steps is None) == (self.epochs is None):
            both = f"steps={self.steps} and epochs={self.epochs}; remove one or set it to null"
            found = "neither" if self.steps is None else both
            raise ValueError(f"give either train.steps or train.epochs, found {found}")
        return self
