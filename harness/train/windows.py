"""What a window counts for, and how long training took, by kind of window."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto

import torch

from harness.config import Config, TraceConfig
from harness.errors import UserError


class Stopwatch:
    """Wall time of training, in laps; what lies between them is not training."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._started: float | None = None
        self.seconds = 0.0

    def start(self) -> None:
        self._started = self._now()

    def stop(self) -> None:
        assert self._started is not None
        self.seconds += self._now() - self._started
        self._started = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is done here is not training."""
        self.stop()
        yield
        self.start()

    def lap(self) -> float:
        """Seconds so far, the watch running on."""
        self.stop()
        self.start()
        return self.seconds

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


class Kind(Enum):
    """What a window counts for."""

    UNTIMED = auto()
    """Its interval: caches, allocators and pools still warm up."""
    TIMED = auto()
    """Its interval and the run."""
    TRACED = auto()
    """No time at all: the profiler slows it down."""
    RESUMING = auto()
    """No time of its own: it uses what a late exchange sent before a pause, which arrived while
    nobody counted."""


def traced_windows(trace: TraceConfig, first: int, windows: int) -> range:
    """Of a run of these windows; raises UserError where it ends before it is traced."""
    start = first + trace.first_window
    if trace.windows and start >= windows:
        raise UserError(
            f"trace.first_window={trace.first_window} is after the end of a run of "
            f"{windows - first} windows; set it lower"
        )
    return range(start, min(windows, start + trace.windows))


class Kinds:
    """Says of each window what it counts for; the same on all ranks, of the config alone."""

    def __init__(self, config: Config, first: int, windows: int) -> None:
        exchange = config.exchange
        self.untimed = min(config.train.untimed_windows, windows - first)
        self._timed_from = first + self.untimed
        self._traced = traced_windows(config.trace, first, windows)
        self._late_from = exchange.synchronous_windows
        self._delay = exchange.delay if exchange.traits.late else 0
        self._resuming_until = first

    def paused(self, ended: int) -> None:
        """Training was paused after so many windows."""
        self._resuming_until = ended + self._delay

    def of(self, window: int) -> Kind:
        if window in self._traced:
            return Kind.TRACED
        if self._late_from <= window < self._resuming_until:
            return Kind.RESUMING
        return Kind.UNTIMED if window < self._timed_from else Kind.TIMED


def no_window_is_timed(config: Config) -> str:
    """One line, where pauses come so often that every window follows one; else nothing."""
    exchange, train = config.exchange, config.train
    often = {
        "train.evaluate_every": train.evaluate_every,
        "train.checkpoint_every": train.checkpoint_every,
        "staleness.curvature_every": config.staleness.curvature_every,
    }
    for key, every in often.items():
        if exchange.traits.late and 0 < every <= exchange.delay:
            return (
                f"{key}={every} leaves no window to be timed: with exchange.delay={exchange.delay} "
                f"the {exchange.delay} after each pause do not count; set it higher"
            )
    return ""


@dataclass(frozen=True)
class Moment:
    """How far a training has come on the stopwatch."""

    seconds: float
    resuming_seconds: float
    """Of them, in windows that resume after a pause."""
    resuming_windows: int


class Spent:
    """Seconds of training and numbers of windows, by kind."""

    def __init__(self, stopwatch: Stopwatch, kind: Kind) -> None:
        self.kind = kind
        self.windows = dict.fromkeys(Kind, 0)
        self._stopwatch = stopwatch
        self._seconds = dict.fromkeys(Kind, 0.0)
        self._from = 0.0

    def changes_to(self, kind: Kind) -> None:
        """Waits for what a card has still to do of the windows before."""
        now = self._stopwatch.lap()
        self._seconds[self.kind] += now - self._from
        self.kind, self._from = kind, now

    def seconds(self, kind: Kind) -> float:
        """Until the watch was last stopped."""
        under_way = self._stopwatch.seconds - self._from if kind is self.kind else 0.0
        return self._seconds[kind] + under_way

    def moment(self) -> Moment:
        """Now, the watch being stopped."""
        return Moment(
            self._stopwatch.seconds, self.seconds(Kind.RESUMING), self.windows[Kind.RESUMING]
        )

    def charged(self, moment: Moment) -> float:
        """Seconds of training up to a moment, of a run that pauses for nothing.

        A window that resumes after a pause waits for nothing, because what it waits for had the
        pause to arrive in: it is charged what a timed window takes on the mean, as far as known by
        now. Where none was timed it is charged its own time.
        """
        timed = self.windows[Kind.TIMED]
        if not timed:
            return moment.seconds
        mean = self.seconds(Kind.TIMED) / timed
        return moment.seconds - moment.resuming_seconds + moment.resuming_windows * mean
