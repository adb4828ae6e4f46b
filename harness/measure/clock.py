"""The clock that splits a window into phases, which add up to its wall time by construction."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import torch
from torch.profiler import record_function

from harness.measure.phase import Phase

UNNAMED = nullcontext()
Show = Callable[[Phase], object]


class Timeline(Protocol):
    """A source of marks; the time between two of them can be read later."""

    def mark(self) -> object: ...
    def passed(self, mark: object) -> bool: ...
    def milliseconds(self, start: object, stop: object) -> float: ...


class HostTimeline:
    """Wall time of the host, for work that is complete when a call returns."""

    def mark(self) -> float:
        return time.perf_counter()

    def passed(self, mark: object) -> bool:
        return True

    def milliseconds(self, start: object, stop: object) -> float:
        assert isinstance(start, float)
        assert isinstance(stop, float)
        return (stop - start) * 1e3


class CardTimeline:
    """Events on the card's current stream: the host runs ahead, and events record when work was
    done.

    A phase in which the host blocks appears as the time that the card was idle for it.
    """

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def passed(self, mark: object) -> bool:
        assert isinstance(mark, torch.cuda.Event)
        return mark.query()

    def milliseconds(self, start: object, stop: object) -> float:
        assert isinstance(start, torch.cuda.Event)
        assert isinstance(stop, torch.cuda.Event)
        return start.elapsed_time(stop)


Times = dict[Phase, float]
"""Milliseconds of one window, by phase; they add up to its wall time."""


class Clock:
    """Splits each window into phases.

    A phase begun inside another one pauses it, so nothing is counted twice and nothing is lost:
    each moment between two marks belongs to the innermost phase open at the time.
    """

    def __init__(
        self, timeline: Timeline, show: Callable[[Phase], object] = lambda _: None
    ) -> None:
        """`show` is called with each phase as it begins, also outside windows."""
        self._timeline = timeline
        self._show = show
        self._open: list[Phase] = []
        self._marks: list[tuple[Phase, object]] = []
        self._unread: deque[tuple[list[tuple[Phase, object]], object]] = deque()
        self._named = False

    def name_phases(self, named: bool) -> None:
        """Sets whether torch's profiler sees windows and phases by name."""
        self._named = named

    def _name(self, name: str) -> AbstractContextManager[object]:
        return record_function(name) if self._named else UNNAMED

    @contextmanager
    def window(self) -> Iterator[None]:
        """Measures one window; time in no phase is OTHER."""
        self._enter(Phase.OTHER)
        try:
            with self._name("window"):
                yield
        finally:
            self._open.pop()
            self._unread.append((self._marks, self._timeline.mark()))
            self._marks = []

    @contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        """Counts the time spent inside the block as `phase`. Outside a window it is not counted."""
        if not self._open:
            self._show(phase)
            yield
            self._show(Phase.OTHER)
            return
        self._enter(phase)
        try:
            with self._name(phase):
                yield
        finally:
            self._open.pop()
            self._show(self._open[-1])
            self._marks.append((self._open[-1], self._timeline.mark()))

    def _enter(self, phase: Phase) -> None:
        self._open.append(phase)
        self._show(phase)
        self._marks.append((phase, self._timeline.mark()))

    def read(self) -> list[Times]:
        """The times of windows that ended since the last call and whose work is done, in order.
        Never blocks."""
        ended: list[Times] = []
        while self._unread and self._timeline.passed(self._unread[0][1]):
            ended.append(self._times(*self._unread.popleft()))
        return ended

    def _times(self, marks: list[tuple[Phase, object]], end: object) -> Times:
        times = dict.fromkeys(Phase, 0.0)
        stops = [mark for _, mark in marks[1:]] + [end]
        for (phase, start), stop in zip(marks, stops, strict=True):
            times[phase] += self._timeline.milliseconds(start, stop)
        return times


def now(device: torch.device) -> float:
    """Seconds, once the device has finished what the current stream holds.

    What travels on other streams, as late results do, goes on: whoever uses a result makes the
    current stream wait for it.
    """
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    return time.perf_counter()


def clock_for(device: torch.device, show: Show = lambda _: None) -> Clock:
    """A clock for the time of `device`; `show` as in `Clock`."""
    return Clock(CardTimeline() if device.type == "cuda" else HostTimeline(), show)
