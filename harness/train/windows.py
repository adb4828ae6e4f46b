"""The role of each window in measurements, and the training time by role."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto

import torch

from harness.config import Config, TraceConfig
from harness.errors import UserError
from harness.measure.clock import now


class Stopwatch:
    """Wall time of training; time between `stop` and `start` is left out."""

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
        """Time spent inside the block is not counted as training."""
        self.stop()
        yield
        self.start()

    def lap(self) -> float:
        """Seconds so far; the watch keeps running."""
        self.stop()
        self.start()
        return self.seconds

    def _now(self) -> float:
        return now(self._device)


class WindowRole(Enum):
    """The use of a window's time."""

    UNTIMED = auto()
    """The metrics of its interval only: caches, allocators and pools are still warming up."""
    TIMED = auto()
    """The metrics of its interval and of the whole run."""
    TRACED = auto()
    """Nothing: the profiler slows the window down."""
    RESUMING = auto()
    """Nothing: the window uses what a late exchange sent before a pause. That result arrived during
    the pause, when nobody was counting."""
    DRAINING = auto()
    """Training time only: all that is in flight lands, and nodes agree, before a checkpoint or the
    end."""


def traced_windows(trace: TraceConfig, first: int, windows: int) -> range:
    """The windows that are traced in a run of windows `first` .. `windows` - 1."""
    start = first + trace.first_window
    return range(start, min(windows, start + trace.windows))


def check_traced(trace: TraceConfig, first: int, windows: int) -> None:
    """Raises UserError if the run ends before tracing begins."""
    if trace.windows and first + trace.first_window >= windows:
        raise UserError(
            f"trace.first_window={trace.first_window} is after the end of a run of "
            f"{windows - first} windows; set it lower"
        )


class WindowSchedule:
    """The role of each window. It follows from the config alone, so all ranks agree on it."""

    def __init__(self, config: Config, first: int, windows: int) -> None:
        exchange = config.exchange
        self.untimed = min(config.train.untimed_windows, windows - first)
        self._timed_from = first + self.untimed
        self._traced = traced_windows(config.trace, first, windows)
        self._late_from = exchange.synchronous_windows
        self._delay = exchange.delay if exchange.traits.late else 0
        self._resuming_until = first
        self._refilling_until = first

    def paused(self, ended: int, drained: bool = False) -> None:
        """Records that training paused after `ended` windows; `drained`: with nothing in flight."""
        until = ended + self._delay
        # After a drain nothing arrives for free, but the first windows have nothing to wait for.
        if drained:
            self._refilling_until = until
        else:
            self._resuming_until = until

    def of(self, window: int) -> WindowRole:
        if window in self._traced:
            return WindowRole.TRACED
        # The first `delay` windows after a pause use results that were launched before it. Windows
        # before `_late_from` are synchronous and wait for their own result, pause or not.
        if self._late_from <= window < self._resuming_until:
            return WindowRole.RESUMING
        refilling = self._late_from <= window < self._refilling_until
        return WindowRole.UNTIMED if refilling or window < self._timed_from else WindowRole.TIMED


def no_window_is_timed(config: Config) -> str:
    """A one-line warning if pauses come so often that no window can be timed, else ""."""
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
                f"the {exchange.delay} after each pause are not timed; set it higher"
            )
    return ""


RIDES = 20
"""Windows between two pauses, by window of delay, from which the free ride after a pause is below
5 %."""


def pauses_are_near(config: Config) -> str:
    """A one-line warning if pauses are so near to each other that several windows of delay make
    rates too high, else "".

    In a pause `delay` results arrive for nothing. The windows that use them are not timed, but
    those behind are up to delay - 1 windows' computing ahead of the link.
    """
    delay, every = config.exchange.delay, config.train.evaluate_every
    if not config.exchange.traits.late or delay < 2 or not 0 < every < RIDES * delay:
        return ""
    return (
        f"train.evaluate_every={every} with exchange.delay={delay}: where the link is the limit, "
        f"images/s come out too high, because {delay} results arrive during each evaluation; set "
        f"it to {RIDES * delay} or more"
    )


@dataclass(frozen=True)
class Snapshot:
    """A reading of the stopwatch."""

    seconds: float
    resuming_seconds: float
    """The part of `seconds` spent in windows that resume after a pause."""
    resuming_windows: int


class TimeByRole:
    """Seconds of training and number of windows, by role."""

    def __init__(self, stopwatch: Stopwatch, role: WindowRole) -> None:
        self.role = role
        self.windows = dict.fromkeys(WindowRole, 0)
        self._stopwatch = stopwatch
        self._seconds = dict.fromkeys(WindowRole, 0.0)
        self._from = 0.0

    def switch_to(self, role: WindowRole) -> None:
        """Switches to the next window's role. Waits until a card has finished the windows
        before."""
        now = self._stopwatch.lap()
        self._seconds[self.role] += now - self._from
        self.role, self._from = role, now

    def seconds(self, role: WindowRole) -> float:
        """Seconds spent in windows of this role, up to the last stop of the watch."""
        under_way = self._stopwatch.seconds - self._from if role is self.role else 0.0
        return self._seconds[role] + under_way

    def snapshot(self) -> Snapshot:
        """The current reading. The watch must be stopped."""
        return Snapshot(
            self._stopwatch.seconds,
            self.seconds(WindowRole.RESUMING),
            self.windows[WindowRole.RESUMING],
        )

    def charged(self, snapshot: Snapshot) -> float:
        """Seconds that a run without pauses would have trained by this reading.

        A window that resumes after a pause does not wait, because the result it needs arrived
        during the pause. It is therefore charged the mean time of the timed windows so far, or its
        own time if no window was timed.
        """
        timed = self.windows[WindowRole.TIMED]
        if not timed:
            return snapshot.seconds
        mean = self.seconds(WindowRole.TIMED) / timed
        # T = (seconds outside resuming windows) + (number of resuming windows) * (mean timed
        # window).
        return snapshot.seconds - snapshot.resuming_seconds + snapshot.resuming_windows * mean
