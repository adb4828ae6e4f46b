"""Printing: never shows a secret, and never ends the process."""

import io
import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TextIO, cast

from harness.measure.redaction import masked

STANDARD = (0, 1, 2)


@contextmanager
def lasting_output() -> Iterator[None]:
    """Inside the block, writing to standard output and error never fails.

    If the terminal is gone, nobody reads the pipe or the disk is full, output is dropped, as is a
    character that the terminal lacks. Addresses are shown without their secrets, also in the
    traceback of an error that ends the process.
    """
    _fill_closed()
    before = sys.stdout, sys.stderr
    streams = _Lasting(before[0]), _Lasting(before[1])
    sys.stdout, sys.stderr = (cast(TextIO, stream) for stream in streams)
    sys.excepthook = _show
    try:
        yield
    finally:
        for stream in streams:
            stream.flush()
        sys.stdout, sys.stderr = before


class _Lasting(io.TextIOBase):
    """A stream that replaces one that may fail."""

    def __init__(self, stream: TextIO | None) -> None:
        # A process that was started without one has None there.
        self._stream = stream or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        if isinstance(self._stream, io.TextIOWrapper):
            self._stream.reconfigure(errors="replace")

    def write(self, text: str) -> int:
        try:
            self._stream.write(masked(text))
        except (OSError, ValueError):  # ValueError: it was closed
            self._drop()
        return len(text)

    def writelines(self, lines: Iterable[Any]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._drop()

    def isatty(self) -> bool:
        return not self._stream.closed and self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def writable(self) -> bool:
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding or "utf-8"

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self._stream.errors

    @property
    def buffer(self) -> Any:
        return self._stream.buffer

    def _drop(self) -> None:
        """Discards all later output of this stream, including that of C code and what is still
        buffered, so that the interpreter's last flush does not fail."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, self._stream.fileno())
        except (OSError, ValueError):  # the stream has no file, or is closed
            self._stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        finally:
            os.close(nowhere)


def _fill_closed() -> None:
    """Opens the standard files that are closed. Otherwise the next file that a run opens would get
    such a number, and C code that prints would write into it."""
    for number in STANDARD:
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number


def _show(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    text = "".join(traceback.format_exception(kind, error, where))
    _Lasting(sys.stderr).write(text)
