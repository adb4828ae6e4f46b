"""The request to save and end before the last window: a signal to any one rank asks all of them."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from harness.errors import RunFailed

REQUEST = signal.SIGUSR1
"""The signal that asks for it. SIGTERM cannot: horovodrun ends ranks with it, in a few seconds."""


class EarlyEnd:
    """Whether this rank has been asked to end early.

    A rank must not act alone, since others would wait for it: the watch for values that are not
    finite, which adds up numbers of every window over all ranks, also adds up who was asked.
    """

    def __init__(self) -> None:
        self._asked_at: float | None = None

    @property
    def asked(self) -> bool:
        return self._asked_at is not None

    @property
    def seconds_ago(self) -> float:
        """Seconds since this rank was asked; 0 if it has not been."""
        return 0.0 if self._asked_at is None else time.monotonic() - self._asked_at

    @contextmanager
    def listening(self) -> Iterator["EarlyEnd"]:
        """Inside the block the signal is a request; after it, it is ignored.

        So none ends the process, as it would by itself: not while a rank starts, and not while it
        tells others how it ended.
        """

        def ask(number: int, frame: FrameType | None) -> None:
            if self._asked_at is None:
                self._asked_at = time.monotonic()

        signal.signal(REQUEST, ask)
        try:
            yield self
        finally:
            signal.signal(REQUEST, signal.SIG_IGN)


class EndedEarly(RunFailed):
    """A run that was asked to end, and did so on all ranks after the same window. Its exit code
    says whether it can go on."""

    def __init__(self, window: int, windows: int, saved: bool) -> None:
        self.exit_code = 3 if saved else 1
        goes_on = "it goes on with --continue" if saved else "nothing was saved"
        super().__init__(f"ended early after {window} of {windows} windows, as asked; {goes_on}")
