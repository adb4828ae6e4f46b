"""Detects, on all ranks together, a loss, gradient or value that is not finite.

A number that is not finite makes every sum it enters not finite. So one sum over all ranks, of a
window's losses, its squared gradients and, now and then, its values, checks all of them, and the
second term also gives the gradient norm. The sum travels while training continues. It is read so
many windows later that no rank waits for it longer than for the exchange of gradients. Before a
pause and at the end all sums are read.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.config import Config
from harness.errors import Diverged
from harness.exchange.flat import Flat
from harness.measure.phase import Phase
from harness.parallel.pending import Pending
from harness.parallel.pulse import CARD_WAIT
from harness.parallel.world import World
from harness.train.course import Course
from harness.train.ledger import Journal

WHAT = (
    "the loss of window {window} is",
    "the gradient norm in window {window} is",
    "the parameters or batch statistics after window {window} are",
)
"""The numbers of a look. If one is not finite, so are those after it."""
ROWS_AT_ONCE = 256
"""Rows of a slice's gradient that are copied together."""


@dataclass(frozen=True)
class Look:
    """One rank's contribution to the sums of one window."""

    window: int
    """Number of windows that had ended, including this one; metrics count steps the same way."""
    steps: int
    """Optimizer steps whose squared gradients are in the numbers; 0 for a look that includes the
    values and belongs to no window."""
    numbers: Tensor
    """[4], float64, the last of which counts the ranks that were asked to end the run; on the host
    once the event `copied` has passed."""
    copied: torch.cuda.Event | None


class Watch:
    """Checks each window; `train.on_nonfinite` decides what happens if one is not finite.

    All ranks call every method for the same windows.
    """

    def __init__(
        self,
        course: Course,
        world: World,
        flats: tuple[Flat, Flat],
        values: Sequence[Tensor],
        drawn: Callable[[], Tensor] | None = None,
    ) -> None:
        """`flats` are the node's shared parameters and this rank's slice; `values` are all tensors
        that training changes; `drawn` is that of `make_optimizer`."""
        self._course = course
        self._world = world
        self._lag = lag_of(course.config)
        self._norms = _counted_norms(world, *flats, drawn)
        self._zero = flats[0].grads.new_zeros((), dtype=torch.float64)
        self._values = values
        self._losses: list[Tensor] = []
        self._squares: list[Tensor] = []
        self._looks: deque[Look] = deque()
        """Looks that a card copies to the host while the next window runs."""
        self._under_way: deque[tuple[Look, Pending]] = deque()
        self._asks = False
        self.must_end = False
        """Whether some rank has asked to end the run; it becomes true after the same window on all
        ranks."""

    def ask_to_end(self) -> None:
        """Asks, on this rank alone, to end the run on all."""
        self._asks = True

    def add_loss(self, loss: Tensor) -> None:
        """Adds the loss of one micro-batch."""
        self._losses.append(loss.detach())

    def add_gradients(self) -> None:
        """Adds the gradients that the optimizer is about to step with."""
        squares = [norm().square() / copies for norm, copies in self._norms]
        self._squares.append(torch.stack(squares).sum())

    def window_ended(self, window: int, journal: Journal) -> None:
        """Looks at the window that ended. Raises Diverged if a window whose sum is read now was not
        finite."""
        self._look(window + 1)
        self._launch(before=window + 1)
        self._read(up_to=window - self._lag, journal=journal)

    def settle(self, ended: int, journal: Journal) -> None:
        """Reads all sums up to `ended` windows, and checks the current values.

        Raises Diverged if something is not finite. Collective over the world.
        """
        self._look(ended, torch.stack([_norm(values) for values in self._values]).sum())
        self._launch(before=ended + 1)
        self._read(up_to=ended, journal=journal)

    def _look(self, window: int, values: Tensor | None = None) -> None:
        losses = torch.stack(self._losses).double().sum() if self._losses else self._zero
        squares = torch.stack(self._squares).sum() if self._squares else self._zero
        asks = self._zero + 1 if self._asks else self._zero
        numbers = torch.stack((losses, squares, self._zero if values is None else values, asks))
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
        """Starts the sums of all looks before window `before`. Waits for a card's copies."""
        while self._looks and self._looks[0].window < before:
            look = self._looks.popleft()
            if look.copied is not None:
                # Whatever collective holds up the card, here is where the host stands still.
                pulse = self._world.meters.pulse
                pulse.show(CARD_WAIT)
                look.copied.synchronize()
                pulse.show(Phase.OTHER)
            self._under_way.append((look, self._world.launch_sum(look.numbers)))

    def _read(self, up_to: int, journal: Journal) -> None:
        while self._under_way and self._under_way[0][0].window <= up_to:
            look, pending = self._under_way.popleft()
            *numbers, asking = pending.wait().tolist()
            self.must_end |= asking > 0
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
        advice = "lower optimizer.lr or raise optimizer.warmup_windows"
        return Diverged(f"{what} not finite (lr {lr:.3g})", advice, window)


def lag_of(config: Config) -> int:
    """Windows after which a look is read, in addition to the one in which it is copied.

    If nodes exchange, each already waits until all others have ended the window whose result lands,
    which is `delay` windows old, so reading that late adds no wait. If they do not exchange, they
    meet only for metrics.
    """
    if not config.exchange.traits.meets:
        return config.train.log_every
    return 1 + config.exchange.delay


def _counted_norms(
    world: World, shared: Flat, sliced: Flat, drawn: Callable[[], Tensor] | None
) -> tuple[tuple[Callable[[], Tensor], float], ...]:
    """The norms of this rank's gradients, and the number of ranks that add the square of each
    element."""
    # Of N shared elements each rank steps n, so R ranks step R n in all: each element R n / N
    # times. A slice group of S ranks holds every class once, and the world has R / S such groups.
    ranks = world.topology.world_size
    own = slice(shared.owned.start, shared.owned.stop)
    copies = ranks * shared.owned.size / len(shared.values)

    def of_slice() -> Tensor:
        # On a card reading all is cheap, and to leave out rows drawn twice would make it wait.
        if drawn is None or sliced.grads.is_cuda:
            return _norm(sliced.grads)
        return _norm_of_rows([*sliced.decayed_rows, *sliced.undecayed_rows], drawn().unique())

    return (lambda: _norm(shared.grads[own]), copies), (of_slice, ranks / world.slices.size)


def _norm_of_rows(parameters: Sequence[nn.Parameter], rows: Tensor) -> Tensor:
    """The norm of these rows of the parameters' gradients."""
    found = [
        _norm(parameter.grad.index_select(0, some))
        for parameter in parameters
        if parameter.grad is not None
        for some in rows.split(ROWS_AT_ONCE)
    ]
    return _norm(torch.stack(found))


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all elements of the tensors are finite on this rank. Waits for the device."""
    return all(bool(_norm(each).isfinite()) for each in tensors)


def _norm(tensor: Tensor) -> Tensor:
    """The norm as float64; it is finite only if all elements are."""
    return torch.linalg.vector_norm(tensor).double()
