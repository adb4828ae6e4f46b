"""Prepared images in one file, mapped into memory by every process that reads them."""

import json
import logging
import math
import os
import socket
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import psutil
import torch
from torch import Tensor

from harness.errors import UserError
from harness.locking import lock
from harness.whole_files import PARTIAL

logger = logging.getLogger(__name__)

HEADER_BYTES = 256
READ_BYTES = 1 << 20


def cached_pixels(
    path: Path, shape: tuple[int, ...], render: Callable[[], Iterable[np.ndarray]]
) -> Tensor:
    """The uint8 array of `shape` in the file `path`, which `render` fills if it is missing.

    `render` yields the array's bytes in order, in parts. One process of a machine writes while the
    others wait; a reader never sees an unfinished file, whatever happens to the writer.

    Raises UserError for a damaged file or a folder that cannot be written.
    """
    if not os.path.exists(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with (path.parent / ".lock").open("w") as file:
                lock(file)
                if not os.path.exists(path):
                    _write(path, shape, render)
        except OSError as error:
            raise UserError(
                f"cannot prepare the images in {path.parent}: {error}; "
                f"fix it or set data.cache to another folder"
            ) from error
    _check(path, shape)
    # "c": changes stay private, since torch does not take read-only memory.
    return torch.from_numpy(np.memmap(path, np.uint8, mode="c", offset=HEADER_BYTES, shape=shape))


def _write(path: Path, shape: tuple[int, ...], render: Callable[[], Iterable[np.ndarray]]) -> None:
    # Several machines may share the folder, and a lock is not always seen by the others, nor by the
    # processes of one machine where a file system has no locks. So each has a partial file of its
    # own, and the last rename wins.
    own = f"{path.name}.{socket.gethostname()}."
    _remove_left(path.parent, own)
    partial = path.with_name(f"{own}{os.getpid()}{PARTIAL}")
    logger.info("preparing %s", path)
    try:
        with partial.open("wb") as file:
            file.write(b" " * HEADER_BYTES)
            checksum = 0
            for part in render():
                checksum = zlib.crc32(part.data, checksum)
                file.write(part.data)
            file.seek(0)
            file.write(_header(shape, checksum))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _remove_left(folder: Path, own: str) -> None:
    """Removes files that begin so, which processes of this machine have left that are gone."""
    for path in folder.glob(f"{own}*{PARTIAL}"):
        number = path.name.removeprefix(own).removesuffix(PARTIAL)
        if number.isdecimal() and not psutil.pid_exists(int(number)):
            path.unlink(missing_ok=True)


def _header(shape: tuple[int, ...], checksum: int) -> bytes:
    fields = json.dumps({"pixels": list(shape), "crc32": checksum})
    return fields.encode().ljust(HEADER_BYTES - 1) + b"\n"


def _check(path: Path, shape: tuple[int, ...]) -> None:
    expected = HEADER_BYTES + math.prod(shape)
    try:
        found = path.stat().st_size
        if found != expected:
            raise _damaged(path, f"it has {found} bytes, not {expected}")
        with path.open("rb") as file:
            header = file.read(HEADER_BYTES)
            checksum = _checksum(file)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; fix or delete it") from error
    if header != _header(shape, checksum):
        raise _damaged(path, "its contents do not match its checksum")


def _checksum(file: BinaryIO) -> int:
    checksum = 0
    while part := file.read(READ_BYTES):
        checksum = zlib.crc32(part, checksum)
    return checksum


def _damaged(path: Path, found: str) -> UserError:
    return UserError(f"the prepared images in {path} are damaged: {found}; delete it and run again")
