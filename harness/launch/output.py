"""Reads horovodrun's output: shows rank 0 on the terminal, and finds the cause if ranks fail."""

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
from harness.launch.hosts import Host, is_here
from harness.launch.leash import RESUMED, STOPPED
from harness.leaving import CONSEQUENCES, VICTIM
from harness.measure.redaction import masked

PREFIX = re.compile(r"^\[(\d+)\]<(stdout|stderr)>:")
FIRST_TO_FAIL = re.compile(r"^Process name: (\d+)\nExit code: (\d+)$", re.MULTILINE)
ENDED = re.compile(r"Process (\d+) exit with status code (\d+)\.")
TRACEBACK = "Traceback (most recent call last)"
USER_ERROR = "harness: "
OF_OTHERS = re.compile(f"{CONSEQUENCES}|Stopped|KeyboardInterrupt")
"""Errors that a rank raises because another rank is gone, or because it was stopped."""
WAITED = re.compile(r"Timed out waiting (\d+)ms")
SSH_FAILED = 255
"""Exit code of ssh if it could not connect, or lost its connection."""
KILLED = range(129, 128 + signal.NSIG)
"""Exit codes of a leash whose rank a signal has ended."""
KEPT_LINES, SHOWN_VICTIMS = 400, 4
QUIET_SECONDS = 15.0
"""Time between two lines of progress if the output is not a terminal."""


@dataclass(frozen=True)
class Line:
    """One line of one rank, or of horovodrun itself (rank None)."""

    rank: int | None
    stream: str
    """stdout or stderr."""
    text: str
    passing: bool
    """Whether a carriage return ended it: the rank's next line replaces it."""


class Splitter:
    """Splits a stream of bytes, which comes in portions of any size, into lines."""

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        self._rest = ""

    def feed(self, portion: bytes, final: bool = False) -> list[Line]:
        """The lines that this portion completes; at the end (`final`) also an unfinished one."""
        text = self._rest + self._decode(portion, final)
        # Split behind each \r and \n, which stay with their lines; the last piece is unfinished.
        *ended, self._rest = re.split(r"(?<=[\r\n])", text)
        if final and self._rest:
            ended, self._rest = [*ended, self._rest + "\n"], ""
        return [_parse(piece) for piece in ended]


def _parse(piece: str) -> Line:
    found = PREFIX.match(piece)
    # Libraries print addresses with passwords; masked here, before terminal, log and record.
    text = masked(piece[found.end() :] if found else piece)
    rank, stream = (int(found[1]), found[2]) if found else (None, "stderr")
    return Line(rank, stream, text.rstrip("\r\n"), piece.endswith("\r"))


class Log:
    """A file of everything that all ranks print. Raises UserError if it cannot be made."""

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: TextIO | None = path.open("w", encoding="utf-8")
        except OSError as error:
            raise UserError(
                f"cannot write {path}: {error.strerror}; give another --folder"
            ) from error

    def add(self, lines: Sequence[Line]) -> None:
        """Writes the lines. On a full disk they are dropped: ranks block if nobody reads them."""
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
            warning = f"warning: the ranks' log cannot be written any more ({error.strerror})"
            print(warning, file=sys.stderr, flush=True)

    def close(self) -> None:
        file, self._file = self._file, None
        with suppress(OSError):  # a full disk does not take what is still buffered
            if file is not None:
                file.close()


class Screen:
    """Shows rank 0 as if it ran here; on a terminal its progress stays on one line."""

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
        # From a traceback on, errors are not shown: the launcher prints the cause at the end.
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


@dataclass(frozen=True)
class EarlyEnd:
    """The end of a run that was asked to end."""

    exit_code: int
    """3 if it has saved a checkpoint."""
    line: str


class Evidence:
    """What ranks printed before the end, from which the cause of a failure is derived."""

    def __init__(self, hosts: Sequence[str] = ()) -> None:
        """`hosts`: the host name of every rank."""
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
        """Exit codes of the ranks that failed, in the order in which they ended."""
        text = "\n".join(self._horovodrun)
        pairs = FIRST_TO_FAIL.findall(text) + ENDED.findall(text)
        codes: dict[int, int] = {}
        for rank, code in pairs:
            codes.setdefault(int(rank), int(code))
        return codes

    def user_error(self) -> str | None:
        """The line of a user error, if a rank ended with exit code 2."""
        codes = self.exit_codes()
        # Only ranks with exit code 2, or none: ranks that were ended because of the error may have
        # printed a line, too.
        errors = [line for rank, line in self._user_errors.items() if codes.get(rank, 2) == 2]
        return errors[0] if errors and 2 in codes.values() else None

    def early_end(self) -> EarlyEnd | None:
        """How a rank ended early, as asked; None if none did."""
        lines = [line for line in self._user_errors.values() if "ended early after" in line]
        if not lines:  # another program may end with any exit code
            return None
        return EarlyEnd(3 if 3 in self.exit_codes().values() else 1, lines[0])

    def cause(self) -> str:
        """The cause of the failure: a stopped rank, a signal, or the first rank's traceback.

        Without any of these, the last lines of the first rank to end, or of horovodrun.
        """
        suspects = self._by_suspicion()
        if not suspects or self._is_consequence(suspects[0]):
            unanswered = self._unanswered()
            if unanswered:
                return unanswered
        codes = self.exit_codes()
        first = next(iter(codes), None)
        if first is not None and codes[first] == SSH_FAILED and self._is_elsewhere(first):
            return (
                f"the connection to rank {first}{self._on(first)} was lost (ssh ended with exit "
                f"code {SSH_FAILED})\n{self._tail(first)}"
            )
        if first is not None and 128 + signal.SIGTERM != codes[first] in KILLED:
            return f"rank {first} was killed by {_signal_name(codes[first])}\n{self._tail(first)}"
        if not self._failing and first in self._user_errors:
            return self._user_errors[first]
        if suspects:
            return f"rank {suspects[0]} failed:\n{self._traceback(suspects[0])}"
        if first is not None:
            return f"rank {first} ended with exit code {codes[first]}\n{self._tail(first)}"
        return "\n".join(list(self._horovodrun)[-20:])

    def _by_suspicion(self) -> list[int]:
        """Ranks with a traceback, first those whose error is not a consequence of another's."""
        return sorted(dict.fromkeys(self._failing), key=self._is_consequence)

    def _is_consequence(self, rank: int) -> bool:
        return bool(OF_OTHERS.search(self._error(rank)))

    def _unanswered(self) -> str:
        """Names the ranks that others waited for in vain; empty if that cannot be known.

        A rank whose process is stopped is known from its leash. Otherwise, if a rank reported that
        another one did not answer, these are the ranks without a traceback that did not report to
        be a victim of another.
        """
        waited = any("did not answer" in line for line in self._victims.values())
        if not waited and not self._stopped:
            return ""
        silent = set(range(len(self._hosts))) - self._victims.keys() - set(self._failing)
        found = sorted(self._stopped or silent)
        if not found:
            return ""
        names = ", ".join(f"rank {rank}{self._on(rank)}" for rank in found)
        texts = [line.text for rank in self._victims for line in self._said[rank]]
        longest = max(map(int, WAITED.findall("\n".join(texts))), default=0)
        seconds = f" for {longest / 1000:.0f} s" if longest else ""
        why = " (its process is stopped)" if self._stopped else ""
        victims = [self._victims[rank] for rank in sorted(self._victims)[:SHOWN_VICTIMS]]
        return "\n".join([f"{names} did not answer{seconds}{why}", *victims])

    def _on(self, rank: int) -> str:
        return f" on {self._hosts[rank]}" if rank < len(self._hosts) else ""

    def _is_elsewhere(self, rank: int) -> bool:
        """Whether ssh has started the rank."""
        try:
            return rank < len(self._hosts) and not is_here(Host(self._hosts[rank], 1))
        except OSError:  # its name does not resolve any more
            return True

    def _error(self, rank: int) -> str:
        """The exception of the rank's first traceback, which no other exception here caused."""
        # The first line after the header that is not indented is `Type: message`.
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
        return f"signal {code - 128}"
    out_of_memory = " (which the kernel sends when memory runs out)"
    return name + (out_of_memory if name == "SIGKILL" else "")
