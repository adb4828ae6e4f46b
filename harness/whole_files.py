"""Small files that are whole whenever somebody reads them, also after a host has lost power."""

import errno
import os
from pathlib import Path

PARTIAL = ".partial"
"""Behind the name of what is being written, and of what was when its writing was interrupted."""
CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP)
"""Errors of file systems that have no fsync for folders."""


def write_text(path: Path, text: str) -> None:
    """Writes a partial file and renames it, so a reader sees the old text or the new one."""
    partial = path.with_name(path.name + PARTIAL)
    partial.write_text(text, encoding="utf-8")
    to_disk(partial)
    partial.replace(path)
    to_disk(path.parent)


def to_disk(path: Path) -> None:
    """Returns once the file, or the names in the folder, are on the disk. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if not (os.path.isdir(path) and error.errno in CANNOT_SYNC):
            raise
    finally:
        os.close(handle)
