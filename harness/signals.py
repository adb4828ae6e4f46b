"""Signal handlers for the duration of a block."""

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType


@contextmanager
def handled(
    numbers: Sequence[signal.Signals], handler: Callable[[int, FrameType | None], object]
) -> Iterator[None]:
    """Inside the block these signals call `handler`; afterwards their former handlers."""
    before = [(number, signal.signal(number, handler)) for number in numbers]
    try:
        yield
    finally:
        for number, former in before:
            signal.signal(number, former)


def unless_ignored(number: signal.Signals) -> list[signal.Signals]:
    """The signal, unless this process was started to ignore it, as nohup does with SIGHUP."""
    return [] if signal.getsignal(number) == signal.SIG_IGN else [number]


def interrupt(number: int, frame: FrameType | None) -> None:
    """A handler that ends a command as Ctrl-C does."""
    raise KeyboardInterrupt


class Noted:
    """Whether a signal has arrived, for a time in which nothing may be interrupted."""

    def __init__(self) -> None:
        self.arrived = False

    def arrives(self, number: int, frame: FrameType | None) -> None:
        """A handler."""
        self.arrived = True
