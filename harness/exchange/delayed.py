"""Averages each window's gradients over all ranks and steps with them `delay` windows later."""

from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from torch import Tensor

from harness.config import ExchangeConfig
from harness.exchange.parts import Chunk, Part
from harness.exchange.wire import Feedback, Sent


@dataclass(frozen=True)
class InFlight:
    gradients: Tensor
    sent: Sent


class Delayed:
    """Every rank applies the same numbers at the same step: replicas stay equal to the bit.

    With delay 0 this is the synchronous exchange by the hierarchical route. The first
    `synchronous_windows` windows use delay 0.
    """

    def __init__(
        self, chunk: Chunk, part: Part, config: ExchangeConfig, synchronous_windows: int
    ) -> None:
        self.passes_per_step = config.backward_passes_per_step
        self._chunk = chunk
        self._part = part
        self._delay = config.delay
        self._synchronous_windows = synchronous_windows
        self._buffers = [part.values() for _ in range(config.delay + 1)]
        wire = part.wire(config.compression, config.delay + 1, "gradients")
        self._wire = Feedback(wire, part.sent, like=self._buffers[0])
        self._in_flight: deque[InFlight] = deque()
        self._window = 0

    def after_backward(self, last: bool) -> bool:
        if not last:
            return False
        slot = self._window % len(self._buffers)
        gradients = self._buffers[slot]
        self._chunk.average_gradients()
        self._part.take_gradients(out=gradients)
        sent = self._wire.launch(gradients[: self._part.sent], slot)
        self._in_flight.append(InFlight(gradients, sent))
        delay = 0 if self._window < self._synchronous_windows else self._delay
        self._window += 1
        if len(self._in_flight) <= delay:
            return False
        self._land()
        return True

    def after_step(self) -> None:
        self._chunk.spread_values()

    def averaged(self) -> AbstractContextManager[Tensor | None]:
        return nullcontext()

    def drain(self, step: Callable[[], None]) -> None:
        while self._in_flight:
            self._land()
            step()
            self._chunk.spread_values()

    def _land(self) -> None:
        oldest = self._in_flight.popleft()
        oldest.sent.mean(into=oldest.gradients[: self._part.sent])
        self._part.put_gradients(oldest.gradients)
