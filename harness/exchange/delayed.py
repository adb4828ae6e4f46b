"""Averages each window's gradients over all ranks and applies them `delay` windows later."""

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from torch import Tensor

from harness.config import ExchangeConfig
from harness.exchange.carried import Strip
from harness.exchange.feedback import Feedback
from harness.exchange.lateness import Lateness, LatenessMeter
from harness.exchange.parts import Chunk, Part
from harness.exchange.wire import Sent


@dataclass(frozen=True)
class InFlight:
    window: int
    gradients: Tensor
    sent: Sent


class Delayed:
    """Applies the mean gradient of a window `delay` windows later, on every rank at the same step.

    All ranks apply the same numbers, so replicas stay equal to the bit. With delay 0 this is the
    synchronous exchange on the hierarchical route. The first `synchronous_windows` windows use
    delay 0.
    """

    averages_in_backward = False

    def __init__(
        self,
        chunk: Chunk,
        part: Part,
        config: ExchangeConfig,
        first_window: int = 0,
        meter: LatenessMeter | None = None,
    ) -> None:
        self.passes_per_step = config.backward_passes_per_step
        self._chunk = chunk
        self._part = part
        self._delay = config.delay
        self._synchronous_windows = config.synchronous_windows
        self._buffers = [part.values() for _ in range(config.delay + 1)]
        wire = part.wire(config.compression, config.delay + 1, "gradients", keeps_own=False)
        self._wire = Feedback(wire, part.sent, like=self._buffers[0])
        self._in_flight: deque[InFlight] = deque()
        self._window = first_window
        self._meter = meter or LatenessMeter(0)
        self._sampled: deque[tuple[int, Tensor]] = deque()
        """Windows that stepped with a late gradient, each with that gradient, kept until its own
        arrives."""

    def changed_in_backward(self) -> list[Tensor]:
        return []

    def gradients_ready(self, last: bool) -> bool:
        if not last:
            return False
        slot = self._window % len(self._buffers)
        gradients = self._buffers[slot]
        self._chunk.average_gradients()
        self._part.take_gradients(out=gradients)
        sent = self._wire.launch(gradients[: self._part.sent], slot)
        self._in_flight.append(InFlight(self._window, gradients, sent))
        return self._land_what_is_due()

    def dropped(self) -> bool:
        return self._land_what_is_due()

    def _land_what_is_due(self) -> bool:
        """Ends the window; returns whether there is a gradient to step with."""
        delay = 0 if self._window < self._synchronous_windows else self._delay
        self._window += 1
        due = self._window - 1 - delay
        if not self._in_flight or self._in_flight[0].window > due:
            self._part.clear_gradients()  # no step does it
            return False
        late = self._land()
        window = self._window - 1
        if delay and self._meter.samples(window):
            self._sampled.append((window, late.clone()))
        return True

    def after_step(self) -> None:
        self._chunk.spread_values()

    def at_mean(self) -> AbstractContextManager[Tensor | None]:
        return nullcontext()

    def divergence_before_drain(self) -> Callable[[], Tensor] | None:
        return None

    def drain(self, step: Callable[[], None]) -> None:
        while self._in_flight:
            self._land()
            step()
            self._chunk.spread_values()

    def carried(self) -> list[Strip]:
        unsent = self._wire.unsent
        return [] if unsent is None else self._part.strips("exchange.unsent", unsent)

    def agree_on(self, states: Sequence[Tensor]) -> None:
        # The optimizers' states are equal already: all ranks stepped with the same gradients.
        self._wire.agree(self._part.peers)

    def lateness(self) -> Lateness:
        return self._meter.take()

    def _land(self) -> Tensor:
        oldest = self._in_flight.popleft()
        oldest.sent.mean(into=oldest.gradients[: self._part.sent])
        self._part.put_gradients(oldest.gradients)
        self._meter.landed(self._window - 1 - oldest.window)
        while self._sampled and self._sampled[0][0] < oldest.window:
            self._sampled.popleft()  # its own gradient was dropped
        if self._sampled and self._sampled[0][0] == oldest.window:
            self._compare(self._sampled.popleft()[1], oldest.gradients)
        return oldest.gradients

    def _compare(self, late: Tensor, fresh: Tensor) -> None:
        """Compares the late gradient that window j applied with window j's own average, which
        landed now."""
        sent = self._part.sent
        self._meter.compare(late[:sent], fresh[:sent], 1 / self._part.copies)
        self._meter.compare(late[sent:], fresh[sent:])
