"""Whether a run that is not marked as ended is still alive: by its heartbeat and its process."""

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.parallel.machine import boot_id

TAG = "heartbeat"
"""Tag of a run in MLflow: time of its last heartbeat, in seconds since 1970."""
PROCESS_TAG = "process"
"""Tag of a run in MLflow: the process that trains it, see `Process`."""
BEAT_SECONDS = 30.0
"""Seconds between two heartbeats."""
SILENT_SECONDS = 10 * BEAT_SECONDS
"""Time without a heartbeat after which a run counts as ended. A store that was away gets the next
heartbeat within seconds of its return, and the clocks of hosts differ by less than this."""
UNMARKED_SILENT_SECONDS = 3600.0
"""The same for runs without heartbeats, of older versions, after their last metric."""


class Pulse:
    """Tells when the next heartbeat is due."""

    def __init__(self) -> None:
        self._last = time.monotonic()  # the run is made with the first heartbeat as a tag

    def due(self) -> bool:
        """Whether a heartbeat is due; if so, the next one is due BEAT_SECONDS later."""
        if time.monotonic() - self._last < BEAT_SECONDS:
            return False
        self._last = time.monotonic()
        return True

    @staticmethod
    def now() -> str:
        return str(int(time.time()))


@dataclass(frozen=True)
class Process:
    """Identifies a process among all machines and boots."""

    host: str
    boot: str
    namespace: str
    """Pid namespace, as each container has its own pids."""
    pid: int
    ticks: str
    """Start time in clock ticks since the boot, as pids are reused."""

    @classmethod
    def own(cls) -> "Process":
        pid = os.getpid()
        return cls(*_here(), pid, _ticks(pid))

    @classmethod
    def parse(cls, text: str) -> "Process | None":
        """The process that `text` has written; None for other text."""
        parts = text.split()
        if len(parts) != 5 or not parts[3].isdecimal():
            return None
        return cls(parts[0], parts[1], parts[2], int(parts[3]), parts[4])

    def text(self) -> str:
        return f"{self.host} {self.boot} {self.namespace} {self.pid} {self.ticks}"

    def alive(self) -> bool | None:
        """Whether the process runs; None if it is another machine's, which cannot be seen here."""
        here = _here()
        if UNKNOWN in here or (self.host, self.boot, self.namespace) != here:
            return None
        return _ticks(self.pid) == self.ticks


UNKNOWN = "unknown"


def tags() -> dict[str, str]:
    """Tags with which a run is made."""
    return {TAG: Pulse.now(), PROCESS_TAG: Process.own().text()}


def last_sign(tags: Mapping[str, str], last_metric: float, now: float) -> float | None:
    """Last sign of life of a run that is not marked as ended, but has ended; None if it is alive.

    All times are in seconds since 1970. `last_metric`: when its last metric was taken, else when
    the run was made.
    """
    process = Process.parse(tags.get(PROCESS_TAG, ""))
    beat = tags.get(TAG, "")
    marked = beat.isdecimal()
    last = max(float(beat), last_metric) if marked else last_metric
    alive = process.alive() if process is not None else None
    if alive is None:
        silent = now - last > (SILENT_SECONDS if marked else UNMARKED_SILENT_SECONDS)
    else:
        silent = not alive
    return last if silent else None


def _here() -> tuple[str, str, str]:
    """This process's host, boot and namespace."""
    return socket.gethostname() or UNKNOWN, boot_id() or UNKNOWN, _namespace()


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return UNKNOWN


def _ticks(pid: int) -> str:
    """Field 22 of /proc/PID/stat, the start time; UNKNOWN if there is no such process, or a zombie.

    The first two fields, pid and (name), are cut off, so it has index 19.
    """
    fields = _read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 and fields[0] not in "ZX" else UNKNOWN


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return UNKNOWN
