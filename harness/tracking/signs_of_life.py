"""Whether a run that nobody called ended still has a process: its heartbeat, and its process."""

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

TAG = "heartbeat"
"""Of a run in MLflow: when its process was last there, in seconds since 1970."""
PROCESS_TAG = "process"
BEAT_SECONDS = 30.0
SILENT_SECONDS = 10 * BEAT_SECONDS
"""After so long without a heartbeat a run has ended: a store that was away is told the next one
within seconds of coming back, and hosts' clocks differ by less."""
UNMARKED_SILENT_SECONDS = 3600.0
"""The same for runs of versions that left no heartbeat, after their last metric."""


class Pulse:
    """When the next heartbeat is due."""

    def __init__(self) -> None:
        self._last = time.monotonic()  # the first one is among the tags that the run is made with

    def due(self) -> bool:
        if time.monotonic() - self._last < BEAT_SECONDS:
            return False
        self._last = time.monotonic()
        return True

    @staticmethod
    def now() -> str:
        return str(int(time.time()))


@dataclass(frozen=True)
class Process:
    """One process among all machines and boots."""

    host: str
    boot: str
    namespace: str
    """Processes are numbered anew in each container."""
    pid: int
    ticks: str
    """When it started, since the boot: numbers are used again."""

    @classmethod
    def own(cls) -> "Process":
        pid = os.getpid()
        return cls(socket.gethostname() or "unknown", _boot(), _namespace(), pid, _ticks(pid))

    @classmethod
    def parse(cls, text: str) -> "Process | None":
        """None for what `text` did not write."""
        parts = text.split()
        if len(parts) != 5 or not parts[3].isdecimal():
            return None
        return cls(parts[0], parts[1], parts[2], int(parts[3]), parts[4])

    def text(self) -> str:
        return f"{self.host} {self.boot} {self.namespace} {self.pid} {self.ticks}"

    def alive(self) -> bool | None:
        """None where that cannot be seen from here: it is, or was, another machine's."""
        here = (socket.gethostname() or "unknown", _boot(), _namespace())
        if UNKNOWN in here or (self.host, self.boot, self.namespace) != here:
            return None
        return _ticks(self.pid) == self.ticks


UNKNOWN = "unknown"


def tags() -> dict[str, str]:
    """What a run is made with."""
    return {TAG: Pulse.now(), PROCESS_TAG: Process.own().text()}


def last_sign(tags: Mapping[str, str], last_metric: float, now: float) -> float | None:
    """When a run that nobody called ended was last heard of, in seconds since 1970; None where it
    goes on. `last_metric`: when its last one was taken, or the run was made."""
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


def _boot() -> str:
    return _read(Path("/proc/sys/kernel/random/boot_id"))


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return UNKNOWN


def _ticks(pid: int) -> str:
    """Field 22 of the process's state; `unknown` for none, and for one that is dead and not yet
    taken notice of."""
    fields = _read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 and fields[0] not in "ZX" else UNKNOWN


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return UNKNOWN
