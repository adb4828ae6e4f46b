"""Nodes that communicate only when drained: the upper bound of any exchange's throughput."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from torch import Tensor

from harness.exchange.carried import Strip, agree
from harness.exchange.lateness import Lateness
from harness.exchange.parts import Chunk, Part, divergence_of, mean_values


class Isolated:
    """Averages every micro-batch's gradients in the node and steps; sends nothing between nodes.

    `drain` leaves all nodes on the average of their values.
    """

    passes_per_step = 1
    averages_in_backward = False

    def __init__(self, chunk: Chunk, part: Part) -> None:
        self._chunk = chunk
        self._part = part

    def changed_in_backward(self) -> list[Tensor]:
        return []

    def gradients_ready(self, last: bool) -> bool:
        self._chunk.average_gradients()
        return True

    def after_step(self) -> None:
        self._chunk.spread_values()

    def dropped(self) -> bool:
        return False

    def at_mean(self) -> AbstractContextManager[Tensor | None]:
        return mean_values([self._part], self._chunk)

    def divergence_before_drain(self) -> Callable[[], Tensor]:
        return divergence_of([self._part])

    def lateness(self) -> Lateness:
        return Lateness()

    def drain(self, step: Callable[[], None]) -> None:
        self._part.put(self._part.average("values"))
        self._chunk.spread_values()

    def carried(self) -> list[Strip]:
        return []

    def agree_on(self, states: Sequence[Tensor]) -> None:
        agree(states, self._part.peers)
