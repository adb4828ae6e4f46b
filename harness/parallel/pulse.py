"""What a rank is doing, in a page of memory that its leash reads.

A rank that hangs cannot report it: its process may be stopped, or its threads may be blocked. So it
writes each change into memory that it shares with the process that started it, which costs about a
microsecond and needs no answer.
"""

import faulthandler
import json
import mmap
import os
import signal
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

VARIABLE = "HARNESS_PULSE"
"""Variable with the number of the inherited file of the page."""
LAYOUT = struct.Struct("<qdd16s48s112s")
"""The rank's process id; when it last moved and how long it may stay so, in seconds of the host's
monotonic clock; its phase; its stage; its last collective, if these are remembered. A rank that is
not watched has a limit of 0."""
SLOW = 10
"""Times as long a rank may stay in a slow stage: one that evaluates, saves, or warms up."""
SPARE = 5
"""Times as long as it ever stayed in a window that a rank may stay: where a forward pass takes a
minute, a rank is not stuck after a minute."""
MARK = "harness-pulse "
"""Start of a line with a report."""
CARD_WAIT = "card_wait"
"""Shown while the host waits for its card, which may wait for other ranks in its turn. It is no
phase of the clock."""
SAVE_WAIT = "save_wait"
"""Shown while a rank waits for the parts of a checkpoint that other ranks write."""
STACKS = signal.SIGUSR2
"""Signal at which a watched rank prints the stacks of its threads to standard error."""


class Pulse:
    """Shows what this rank does. Without a page, as without a leash, it does nothing."""

    def __init__(self, page: mmap.mmap | None = None, seconds: float = 0.0) -> None:
        """`seconds`: how long this rank may stay where it is before it counts as stuck."""
        self._page = page
        self._seconds = seconds
        self._times, self._in_window = 0, False
        self._moved = time.monotonic()
        self._phase, self._stage, self._collective = b"", b"", b""

    def window(self, number: int, slow: bool) -> None:
        """Begins a window; `slow`: it may take SLOW times as long as others."""
        self._begin(f"window {number}", SLOW if slow else 1, in_window=True)

    def pause(self, stage: str) -> None:
        """Begins what happens between two windows, which may take SLOW times as long."""
        self._begin(stage, SLOW, in_window=False)

    def end(self) -> None:
        """Ends the last stage: from now on the rank is not watched."""
        self._begin("", 0, in_window=False)

    def show(self, phase: str) -> None:
        """Shows the phase of the present stage; before the first stage the rank is not watched."""
        self._phase = phase.encode()
        self._write()

    def collective(self, text: str) -> None:
        """Shows the collective that the rank launches now."""
        self._collective = text.encode()
        self._write()

    def _begin(self, stage: str, times: int, in_window: bool) -> None:
        self._write()
        self._stage, self._times, self._in_window = stage.encode(), times, in_window
        self._write()

    def _write(self) -> None:
        if self._page is None:
            return
        now = time.monotonic()
        if self._in_window:
            self._seconds = max(self._seconds, SPARE * (now - self._moved))
        self._moved = now
        values = now, self._times * self._seconds, self._phase, self._stage, self._collective
        LAYOUT.pack_into(self._page, 0, os.getpid(), *values)


SILENT = Pulse()


@contextmanager
def open_pulse(seconds: float) -> Iterator[Pulse]:
    """The pulse that this process's leash reads, if there is one; `seconds` as in `Pulse`."""
    # Taken out, because programs that this one starts inherit the variable and not the file.
    descriptor = os.environ.pop(VARIABLE, None)
    if descriptor is None or not seconds:
        yield SILENT
        return
    faulthandler.register(STACKS, file=sys.stderr, all_threads=True)
    with mmap.mmap(int(descriptor), LAYOUT.size) as page:
        pulse = Pulse(page, seconds)
        try:
            yield pulse
        finally:
            pulse.end()


@dataclass(frozen=True)
class Report:
    """What a leash reports about its rank."""

    seconds: float
    """Since the rank last moved."""
    limit: float
    """Seconds after which it counts as stuck; 0 if it is not watched."""
    phase: str
    stage: str
    stopped: bool
    """Whether its process is stopped."""
    crossed: int
    """Bytes through the network interfaces that the rank sees, since its host started."""
    collective: str = ""
    """The last one that it launched; empty unless `train.check_collectives` is set."""

    @property
    def stuck(self) -> bool:
        return 0 < self.limit < self.seconds

    @property
    def waits(self) -> bool:
        """Whether it waits for other ranks."""
        return self.phase.endswith("_wait") and not self.stopped

    def line(self) -> str:
        return MARK + json.dumps(asdict(self))


class Watched:
    """The page of one rank, as its leash sees it."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("pulse", 0)
        """File of the page, for the rank to inherit."""
        os.ftruncate(self.descriptor, LAYOUT.size)
        self._page = mmap.mmap(self.descriptor, LAYOUT.size)
        self.latest = Report(0.0, 0.0, "", "", stopped=False, crossed=0)

    @property
    def pid(self) -> int:
        """The rank's process; 0 before it is watched."""
        return int(LAYOUT.unpack_from(self._page)[0])

    def report(self, stopped: bool) -> Report:
        """A new report, the `latest` from now on."""
        pid, moved, limit, phase, stage, collective = LAYOUT.unpack_from(self._page)
        self.latest = Report(
            seconds=time.monotonic() - moved,
            limit=limit,
            phase=phase.rstrip(b"\0").decode(),
            stage=stage.rstrip(b"\0").decode(),
            stopped=stopped,
            crossed=_crossed(pid),
            collective=collective.rstrip(b"\0").decode(errors="replace"),
        )
        return self.latest


def parse(line: str) -> Report | None:
    """The report in a line that a rank or its leash printed, which may begin with other text; None
    if there is none, or other text is in it, as where two processes write at once."""
    _, found, report = line.partition(MARK)
    try:
        return Report(**json.loads(report)) if found else None
    except (ValueError, TypeError):
        return None


def _crossed(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/net/dev", encoding="utf-8") as table:
            rows = [line.partition(":")[2].split() for line in table.readlines()[2:]]
    except OSError:
        return 0  # the process has just ended
    return sum(int(row[0]) + int(row[8]) for row in rows)  # received, sent
