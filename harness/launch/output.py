"""Reads what horovodrun passes on: rank 0 for the terminal, and the cause when ranks fail."""

import codecs
import re
import signal
import sys
import time
from collections import defaultdict, deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from harness.errors import UserError
from harness.launch.leash import RESUMED, STOPPED
from harness.leaving import VICTIM
from harness.measure.redaction import masked

PREFIX = re.compile(r"^\[(\d+)\]<(stdout|stderr)>:")
FIRST_TO_FAIL = re.compile(r"^Process name: (\d+)\nExit code: (\d+)$", re.MULTILINE)
ENDED = re.compile(r"Process (\d+) exit with status code (\d+)\.")
TRACEBACK = "Traceback (most recent call last)"
USER_ERROR = "harness: "
CONSEQUENCES = re.compile(
    r"HorovodInternalError|Timed out waiting|Application timeout|"
    r"Connection (closed|reset|refused)|Broken pipe|"
    r"DistBackendError|DistNetworkError|Stopped|KeyboardInterrupt"
)
"""Errors that a rank raises because another one is gone."""
WAITED = re.compile(r"Timed out waiting (\d+)ms")
KEPT_LINES, SHOWN_VICTIMS = 400, 4
QUIET_SECONDS = 15.0
"""Between two lines of progress where the terminal is none."""


@dataclass(frozen=True)
class Line:
    """One line of one rank, or of horovodrun itself (rank None)."""

    rank: int | None
    stream: str
    text: str
    passing: bool
    """Ended by a carriage return: the next line of the rank replaces it."""


class Splitter:
    """Bytes in any portions -> lines."""

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        self._rest = ""

    def feed(self, portion: bytes, final: bool = False) -> list[Line]:
        text = self._rest + self._decode(portion, final)
        *ended, self._rest = re.split(r"(?<=[\r\n])", text)
        if final and self._rest:
            ended, self._rest = [*ended, self._rest + "\n"], ""
        return [_parse(piece) for piece in ended]


def _parse(piece: str) -> Line:
    found = PREFIX.match(piece)
    # What a rank's libraries print of an address goes to the terminal, a log and the record.
    text = masked(piece[found.end() :] if found else piece)
    rank, stream = (int(found[1]), found[2]) if found else (None, "stderr")
    return Line(rank, stream, text.rstrip("\r\n"), piece.endswith("\r"))


class Log:
    """All that all ranks said, in a file. Raises UserError where it cannot be made."""

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: TextIO | None = path.open("w", encoding="utf-8")
        except OSError as error:
            raise UserError(
                f"cannot write {path}: {error.strerror}; give another --folder"
            ) from error

    def add(self, lines: Sequence[Line]) -> None:
        """What a full disk does not take is dropped: the ranks wait for whoever reads them."""
        if self._file is None:
            return
        try:
            for line in lines:
                if not line.passing:
                    of = "horovodrun" if line.rank is None else f"{line.rank} {line.stream}"
                    self._file.write(f"[{of}] {line.text}\n")
            self._file.flush()
        except OSError as error:
            self.close()
            said = f"warning: the ranks' log cannot be written any more ({error.strerror})"
            print(said, file=sys.stderr, flush=True)

    def close(self) -> None:
        file, self._file = self._file, None
        with suppress(OSError):  # what a full disk did not take
            if file is not None:
                file.close()


class Screen:
    """Shows rank 0 as if it had been started here; progress stays on one line of a terminal."""

    def __init__(self, stream: TextIO, columns: int) -> None:
        self._stream = stream
        self._columns = columns
        self._terminal = stream.isatty()
        self._last_progress = time.monotonic()
        self._failing = False

    def show(self, line: Line) -> None:
        if line.text.startswith((STOPPED, RESUMED)):
            self._write(f"rank {line.rank}: {line.text}\n")
        if line.rank != 0 or line.text.startswith((STOPPED, RESUMED)):
            return
        # What the launcher says at the end about a failure is not said twice.
        self._failing |= line.stream == "stderr" and line.text.startswith((TRACEBACK, USER_ERROR))
        if self._failing and line.stream == "stderr":
            return
        if not line.passing:
            self._write(("\r\x1b[K" if self._terminal else "") + line.text + "\n")
        elif line.text.strip():
            self._show_progress(line.text)

    def _show_progress(self, text: str) -> None:
        now = time.monotonic()
        if self._terminal:
            self._write("\r\x1b[K" + text[: self._columns - 1])
        elif now - self._last_progress >= QUIET_SECONDS:
            self._last_progress = now
            self._write(text + "\n")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


class Evidence:
    """What the ranks said before the end, for the one who asks why it came."""

    def __init__(self, hosts: Sequence[str] = ()) -> None:
        """`hosts`: of every rank."""
        self._hosts = hosts
        self._said: dict[int, deque[Line]] = defaultdict(lambda: deque(maxlen=KEPT_LINES))
        self._horovodrun: deque[str] = deque(maxlen=KEPT_LINES)
        self._failing: list[int] = []
        self._user_errors: dict[int, str] = {}
        self._victims: dict[int, str] = {}
        self._stopped: set[int] = set()

    def add(self, line: Line) -> None:
        if line.passing:
            return
        if line.rank is None:
            self._horovodrun.append(line.text)
            return
        self._said[line.rank].append(line)
        if line.stream == "stderr" and line.text.startswith(TRACEBACK):
            self._failing.append(line.rank)
        if line.text.startswith(STOPPED):
            self._stopped.add(line.rank)
        elif line.text.startswith(RESUMED):
            self._stopped.discard(line.rank)
        elif VICTIM.search(line.text):
            self._victims[line.rank] = line.text
        elif line.stream == "stderr" and line.text.startswith(USER_ERROR):
            self._user_errors[line.rank] = line.text

    def exit_codes(self) -> dict[int, int]:
        """Of the ranks that did not end well, the first to end first."""
        text = "\n".join(self._horovodrun)
        pairs = FIRST_TO_FAIL.findall(text) + ENDED.findall(text)
        codes: dict[int, int] = {}
        for rank, code in pairs:
            codes.setdefault(int(rank), int(code))
        return codes

    def user_error(self) -> str | None:
        """The line of the user's mistake, where a rank ended with exit code 2."""
        codes = self.exit_codes()
        # Ranks that were ended because of it may have had something to say as well.
        told = [line for rank, line in self._user_errors.items() if codes.get(rank, 2) == 2]
        return told[0] if told and 2 in codes.values() else None

    def cause(self) -> str:
        """The traceback of the rank that failed first, or the last words there are."""
        suspects = self._by_suspicion()
        if not suspects or self._is_consequence(suspects[0]):
            unanswered = self._unanswered()
            if unanswered:
                return unanswered
        codes = self.exit_codes()
        first = next(iter(codes), None)
        if first is not None and codes[first] > 128 and codes[first] != 128 + signal.SIGTERM:
            return f"rank {first} was ended by {_signal_name(codes[first])}\n{self._tail(first)}"
        if not self._failing and first in self._user_errors:
            return self._user_errors[first]
        if suspects:
            return f"rank {suspects[0]} failed:\n{self._traceback(suspects[0])}"
        if first is not None:
            return f"rank {first} ended with exit code {codes[first]}\n{self._tail(first)}"
        return "\n".join(list(self._horovodrun)[-20:])

    def _by_suspicion(self) -> list[int]:
        """Ranks with a traceback; first those whose error is not another rank's consequence."""
        return sorted(dict.fromkeys(self._failing), key=self._is_consequence)

    def _is_consequence(self, rank: int) -> bool:
        return bool(CONSEQUENCES.search(self._error(rank)))

    def _unanswered(self) -> str:
        """Names the ranks that others waited for in vain, where that can be known.

        A stopped process is seen by its leash. Else it is those that did not say that they were
        stopped by another, where one of these ran out of patience.
        """
        waited = any("did not answer" in line for line in self._victims.values())
        if not waited and not self._stopped:
            return ""
        silent = set(range(len(self._hosts))) - self._victims.keys() - set(self._failing)
        found = sorted(self._stopped or silent)
        if not found:
            return ""
        names = ", ".join(f"rank {rank}{self._on(rank)}" for rank in found)
        said = [line.text for rank in self._victims for line in self._said[rank]]
        longest = max(map(int, WAITED.findall("\n".join(said))), default=0)
        seconds = f" for {longest / 1000:.0f} s" if longest else ""
        why = " (its process is stopped)" if self._stopped else ""
        victims = [self._victims[rank] for rank in sorted(self._victims)[:SHOWN_VICTIMS]]
        return "\n".join([f"{names} did not answer{seconds}{why}", *victims])

    def _on(self, rank: int) -> str:
        return f" on {self._hosts[rank]}" if rank < len(self._hosts) else ""

    def _error(self, rank: int) -> str:
        """The last line of the rank's first traceback: the exception that nothing caused here."""
        lines = self._traceback(rank).splitlines()
        return next((line for line in lines[1:] if line and not line[0].isspace()), "")

    def _traceback(self, rank: int) -> str:
        lines = [line.text for line in self._said[rank] if line.stream == "stderr"]
        starts = [number for number, line in enumerate(lines) if line.startswith(TRACEBACK)]
        return "\n".join(lines[starts[0] if starts else -20 :])

    def _tail(self, rank: int) -> str:
        return "\n".join([line.text for line in self._said[rank]][-20:])


def _signal_name(code: int) -> str:
    try:
        name = signal.Signals(code - 128).name
    except ValueError:
        return f"exit code {code}"
    out_of_memory = " (as the system ends a process when memory runs out)"
    return name + (out_of_memory if name == "SIGKILL" else "")
