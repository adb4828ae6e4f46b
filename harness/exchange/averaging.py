"""Nodes step on their own gradients; every window their parameters are averaged, late."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from harness.exchange.buckets import Buckets
from harness.exchange.flat import Flat
from harness.exchange.parts import Parts
from harness.parallel.group import Group
from harness.parallel.replicas import Average


@dataclass(frozen=True)
class InFlight:
    part: Tensor
    sent: Tensor
    """What this rank put into the average."""
    average: Average


class Averaging:
    """A node's ranks agree on every micro-batch's gradients and step at once; K steps are a window.

    At a window's end the average of values over nodes is launched; `delay` windows later
    `average - sent` is added, so steps made meanwhile are kept. `drain` leaves all nodes on the
    average of their values, equal to the bit. Local momentum stays local.
    """

    passes_per_step = 1

    def __init__(
        self,
        parts: Parts,
        shared: Flat,
        node: Group,
        bucket_bytes: float,
        delay: int,
        synchronous_windows: int,
    ) -> None:
        self._buckets = Buckets(shared, bucket_bytes, 1, node.launch_average)
        self._parts = parts
        self._delay = delay
        self._synchronous_windows = synchronous_windows
        self._buffers = [(parts.new(), parts.new()) for _ in range(delay + 1)]
        self._in_flight: deque[InFlight] = deque()
        self._window = 0

    def after_backward(self, last: bool) -> bool:
        self._buckets.finish()
        return True

    def after_step(self, last: bool) -> None:
        if not last:
            return
        self._launch()
        delay = 0 if self._window < self._synchronous_windows else self._delay
        self._window += 1
        while len(self._in_flight) > delay:
            self._land()

    def drain(self, step: Callable[[], None]) -> None:
        while self._in_flight:
            self._land()
        self._launch()
        final = self._in_flight.popleft()
        final.average.wait()
        self._parts.put_values(final.part)

    def _launch(self) -> None:
        slot = self._window % len(self._buffers)
        part, sent = self._buffers[slot]
        self._parts.take_values(part)
        sent.copy_(part)
        average = self._parts.launch_average(part, f"values.{slot}")
        self._in_flight.append(InFlight(part, sent, average))

    def _land(self) -> None:
        oldest = self._in_flight.popleft()
        oldest.average.wait()
        self._parts.add_values(oldest.part.sub_(oldest.sent))
