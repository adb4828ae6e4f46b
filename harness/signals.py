"""Handlers of signals for as long as a block runs."""

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType


@contextmanager
def handled(
    numbers: Sequence[signal.Signals], handler: Callable[[int, FrameType | None], object]
) -> Iterator[None]:
    """These signals call `handler` inside the block, and what they called before behind it."""
    before = [(number, signal.signal(number, handler)) for number in numbers]
    try:
        yield
    finally:
        for number, former in before:
            signal.signal(number, former)


def interrupt(number: int, frame: FrameType | None) -> None:
    """A handler that ends a command as Ctrl-C does."""
    raise KeyboardInterrupt


def ignore(number: int, frame: FrameType | None) -> None:
    """A handler that does nothing; programs that are started do not inherit it, as they would
    `signal.SIG_IGN`."""
