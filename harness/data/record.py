"""A record of files found readable: 8 bytes each, in a file that all ranks of a host append to."""

import hashlib
from pathlib import Path

import numpy as np

from harness.locking import lock


def stamp(*parts: bytes) -> int:
    """A 64-bit number that identifies something on record."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return int.from_bytes(digest.digest(), "little")


class Record:
    """Stamps that outlive the run. Damage to the file only makes it forget some.

    If the folder cannot be written, `problem` is the reason and no error is raised.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problem = ""
        self._known = self._read()

    def knows(self, stamps: np.ndarray) -> np.ndarray:
        """Whether each of the uint64 `stamps` was on record when the file was read; bool."""
        return np.isin(stamps, self._known)

    def add(self, stamps: np.ndarray) -> None:
        """Appends uint64 `stamps`, in one piece although other processes append at the same
        time."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                lock(file)
                file.write(stamps.astype("<u8").tobytes())
        except OSError as error:
            self._failed(error)

    def _read(self) -> np.ndarray:
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            content = b""
        except OSError as error:
            self._failed(error)
            content = b""
        return np.frombuffer(content, "<u8", count=len(content) // 8)

    def _failed(self, error: OSError) -> None:
        self.problem = (
            f"the record of readable files cannot be written to {self.path.parent} "
            f"({error.strerror}): the next run will open all files again; set data.cache to a "
            f"writable folder"
        )
