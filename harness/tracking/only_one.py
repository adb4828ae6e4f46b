"""Lets only one process at a time train the run of a folder."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from harness.errors import UserError
from harness.locking import lock

LOCK = "training.lock"
"""File in the run's folder while it is trained; it names the process that holds it locked."""
WAIT_SECONDS = 20.0
"""Time for the rank of a start before to end, which may be on a host that has just failed."""


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Inside the block no other process can enter it for this folder; the kernel ends that if this
    process ends, in whatever way.

    Raises UserError if another process trains the run. On a file system without locks, or a folder
    that cannot be written, nothing is kept out.
    """
    path = folder / LOCK
    file = _locked(path)
    if file is None:
        yield
        return
    with file:
        try:
            yield
        finally:
            _remove(path)  # while it is held: who waits for it sees that it is gone


def is_trained(folder: Path) -> bool:
    """Whether a process trains the run of the folder; False where that cannot be known."""
    try:
        with (folder / LOCK).open("r+") as file:
            return not lock(file, wait_seconds=0.0)
    except OSError:
        return False


def _locked(path: Path) -> IO[str] | None:
    """The file, locked; None if it cannot be written."""
    end = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            file = path.open("a+", encoding="utf-8")
        except OSError:
            return None
        if not lock(file, max(0.0, end - time.monotonic())):
            raise _taken(path, file)
        if _is_at(path, file):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            return file
        file.close()


def _is_at(path: Path, file: IO[str]) -> bool:
    """Whether the file still has this name: who held it before may have removed it."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


def _taken(path: Path, file: IO[str]) -> UserError:
    with file:
        file.seek(0)
        holder = file.read() or "another process"
    return UserError(
        f"the run in {path.parent} is being trained by {holder}; wait until it has ended or end "
        f"it, or give another --folder"
    )


def _remove(path: Path) -> None:
    with suppress(OSError):  # a file that is left behind is not locked
        path.unlink()
