"""Sees, on all ranks alike, when a loss, a gradient or a value is not finite any more.

Numbers that are not finite stay so in a sum: one sum over all ranks of a window's losses, of the
squares of its gradients and, now and then, of its values says whether all of them are finite, and
the second is the gradient's norm besides. The sum travels while training goes on and is read so
many windows later that nobody waits who does not wait for the exchange of gradients already; before
a pause, and at the end, everything is read first.
"""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from harness.config import Config
from harness.errors import Diverged
from harness.exchange.flat import Flat
from harness.parallel.group import Pending
from harness.parallel.world import World
from harness.train.course import Course
from harness.train.ledger import Journal

WHAT = (
    "the loss of window {window} is",
    "the gradient norm in window {window} is",
    "the parameters or batch statistics after window {window} are",
)
"""The numbers of a look, in the order in which one spoils the next."""


@dataclass(frozen=True)
class Look:
    """What this rank adds to the sums of one window."""

    window: int
    """How many windows had ended, this one included; metrics count their steps in the same way."""
    steps: int
    """Optimizer steps whose gradients' squares are among the numbers; 0 for a look that includes
    the values, which belongs to no window."""
    numbers: Tensor
    """[3], float64, on the host once the event `copied` has passed."""
    copied: torch.cuda.Event | None


class Watch:
    """Looks at each window; `train.on_nonfinite` says what becomes of one that is not finite.

    Every method is called by all ranks for the same windows.
    """

    def __init__(
        self,
        course: Course,
        world: World,
        flats: tuple[Flat, Flat],
        values: Sequence[Tensor],
    ) -> None:
        """`flats`: what a node's ranks share, and this rank's slice; `values`: all that training
        changes."""
        self._course = course
        self._world = world
        self._lag = lag_of(course.config)
        self._grads = _counted_grads(world, *flats)
        self._values = values
        self._losses: list[Tensor] = []
        self._squares: list[Tensor] = []
        self._looks: deque[Look] = deque()
        """A card copies them while the next window runs."""
        self._under_way: deque[tuple[Look, Pending]] = deque()
        self._good: Path | None = None

    def add_loss(self, loss: Tensor) -> None:
        """Adds the loss of one micro-batch."""
        self._losses.append(loss.detach())

    def add_gradients(self) -> None:
        """Adds the gradients that the optimizer is about to step with."""
        squares = [_norm(grads).square() / copies for grads, copies in self._grads]
        self._squares.append(torch.stack(squares).sum())

    def saved(self, folder: Path | None) -> None:
        """The last checkpoint that was written, it and its logits finite; None: none was."""
        self._good = folder or self._good

    def window_ended(self, window: int, journal: Journal) -> None:
        """Raises Diverged where one of the windows that are read now was not finite."""
        self._look(window + 1)
        self._launch(before=window + 1)
        self._read(up_to=window - self._lag, journal=journal)

    def settle(self, ended: int, journal: Journal) -> None:
        """Reads everything of `ended` windows, and looks at the values as they are now.

        Raises Diverged where something is not finite. Collective over the world.
        """
        self._look(ended, torch.stack([_norm(values) for values in self._values]).sum())
        self._launch(before=ended + 1)
        self._read(up_to=ended, journal=journal)

    def _look(self, window: int, values: Tensor | None = None) -> None:
        zero = self._grads[0][0].new_zeros((), dtype=torch.float64)
        losses = torch.stack(self._losses).double().sum() if self._losses else zero
        squares = torch.stack(self._squares).sum() if self._squares else zero
        numbers = torch.stack((losses, squares, zero if values is None else values))
        steps = len(self._squares) if values is None else 0
        self._losses, self._squares = [], []
        copied = None
        if numbers.is_cuda:
            host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            numbers = host.copy_(numbers, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
        self._looks.append(Look(window, steps, numbers, copied))

    def _launch(self, before: int) -> None:
        """Starts the sums of windows that a card has ended, or soon will have."""
        while self._looks and self._looks[0].window < before:
            look = self._looks.popleft()
            if look.copied is not None:
                look.copied.synchronize()
            self._under_way.append((look, self._world.launch_sum(look.numbers)))

    def _read(self, up_to: int, journal: Journal) -> None:
        while self._under_way and self._under_way[0][0].window <= up_to:
            look, pending = self._under_way.popleft()
            numbers = pending.wait().tolist()
            for what, number in zip(WHAT, numbers, strict=True):
                if not math.isfinite(number):
                    raise self._diverged(look.window, what.format(window=look.window))
            if look.steps and self._logs(look.window):
                norm = math.sqrt(numbers[1] / look.steps)
                journal.log(look.window, {"train/gradient_norm": norm})

    def _logs(self, window: int) -> bool:
        every = self._course.config.train.log_every
        return window % every == 0 or window == self._course.windows

    def _diverged(self, window: int, what: str) -> Diverged:
        lr = self._course.lr(window - 1)
        kept = "no checkpoint was written before it; train.checkpoint_every=N writes some"
        if self._good is not None:
            kept = f"the last good checkpoint is {self._good}"
        elif resumed := self._course.config.train.resume:
            kept = f"or resume from an earlier checkpoint than {resumed}, which may hold the cause"
        advice = f"lower optimizer.lr or raise optimizer.warmup_windows; {kept}"
        return Diverged(f"{what} not finite (lr {lr:.3g})", advice)


def lag_of(config: Config) -> int:
    """Windows after which a look is read, beside the one in which it is copied.

    Where nodes exchange, each waits until all others have ended the window that lands anyway, and
    that is `delay` windows old. Where they do not, they meet for the metrics' sake alone.
    """
    if not config.exchange.traits.meets:
        return config.train.log_every
    return 1 + config.exchange.delay


def _counted_grads(world: World, shared: Flat, sliced: Flat) -> tuple[tuple[Tensor, float], ...]:
    """This rank's gradients, and how many ranks add the square of each of their elements."""
    # Of N shared elements each rank steps n, and R ranks step R n: each element R n / N times. A
    # slice group of S ranks holds every class once, and the world has R / S such groups.
    ranks = world.topology.world_size
    own = slice(shared.owned.start, shared.owned.stop)
    copies = ranks * shared.owned.size / len(shared.values)
    return (shared.grads[own], copies), (sliced.grads, ranks / world.slices.size)


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all are finite on this rank. Waits for the device."""
    return all(bool(_norm(each).isfinite()) for each in tensors)


def _norm(tensor: Tensor) -> Tensor:
    """A float64 that is finite only if all elements are."""
    return torch.linalg.vector_norm(tensor).double()
