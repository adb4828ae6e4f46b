"""Averages each window's gradients over all ranks and steps with them `delay` windows later."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from harness.exchange.parts import Parts
from harness.parallel.replicas import Average


@dataclass(frozen=True)
class InFlight:
    part: Tensor
    average: Average


class Delayed:
    """Every rank applies the same numbers at the same step: replicas stay equal to the bit.

    With delay 0 this is the synchronous exchange by the hierarchical route. The first
    `synchronous_windows` windows use delay 0.
    """

    def __init__(self, parts: Parts, passes: int, delay: int, synchronous_windows: int) -> None:
        self.passes_per_step = passes
        self._parts = parts
        self._delay = delay
        self._synchronous_windows = synchronous_windows
        self._buffers = [parts.new() for _ in range(delay + 1)]
        self._in_flight: deque[InFlight] = deque()
        self._window = 0

    def after_backward(self, last: bool) -> bool:
        if not last:
            return False
        slot = self._window % len(self._buffers)
        part = self._buffers[slot]
        self._parts.take_gradients(part)
        average = self._parts.launch_average(part, f"gradients.{slot}")
        self._in_flight.append(InFlight(part, average))
        delay = 0 if self._window < self._synchronous_windows else self._delay
        self._window += 1
        if len(self._in_flight) <= delay:
            return False
        self._land()
        return True

    def after_step(self, last: bool) -> None:
        return None

    def drain(self, step: Callable[[], None]) -> None:
        while self._in_flight:
            self._land()
            step()

    def _land(self) -> None:
        oldest = self._in_flight.popleft()
        oldest.average.wait()
        self._parts.put_gradients(oldest.part)
