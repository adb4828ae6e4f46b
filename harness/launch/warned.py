"""A scheduler's warning to the launcher: ranks may save and end by themselves for a while."""

import math
import os
import signal
import subprocess
import time
from contextlib import suppress
from types import FrameType

WARNINGS = (signal.SIGTERM, signal.SIGUSR1)
"""Signals by which a scheduler announces that it will end this process."""


class Warned:
    """A signal that warns of the end: passed on to a rank, which asks all others, and to be obeyed
    once the time of grace is over."""

    def __init__(self, process: "subprocess.Popen[bytes]", grace_seconds: float) -> None:
        self._process = process
        self._grace_seconds = grace_seconds
        self._until = math.inf

    @property
    def arrived(self) -> bool:
        return self._until < math.inf

    def arrives(self, number: int, frame: FrameType | None) -> None:
        """A handler. Later warnings change nothing."""
        if self.arrived:
            return
        if not self._grace_seconds:
            raise KeyboardInterrupt
        self._until = time.monotonic() + self._grace_seconds
        assert self._process.stdin is not None
        with suppress(OSError):  # the ranks have just ended
            os.write(self._process.stdin.fileno(), bytes([signal.SIGUSR1]))

    def check(self) -> None:
        """Raises KeyboardInterrupt once the time of grace is over."""
        if time.monotonic() > self._until:
            raise KeyboardInterrupt
