"""What exchanges have in common that leave nothing under way when a window ends."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor

from harness.exchange.carried import Strip
from harness.exchange.lateness import ON_TIME, Lateness


class OnTime:
    """After each step all nodes hold the same values, and there is nothing to land."""

    def after_step(self) -> None:
        return None

    def averaged(self) -> AbstractContextManager[Tensor | None]:
        return nullcontext()

    def apart(self) -> Callable[[], Tensor] | None:
        return None

    def lateness(self) -> Lateness:
        return ON_TIME

    def drain(self, step: Callable[[], None]) -> None:
        return None

    def carried(self) -> list[Strip]:
        return []

    def agree_on(self, states: Sequence[Tensor]) -> None:
        return None
