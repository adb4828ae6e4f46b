"""Files of a checkpoint: a file that is renamed into place is complete and on the disk."""

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from harness.parallel.slices import Slice

CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP)
"""Errors of file systems that have no fsync for folders."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors to a file on the disk. Raises OSError if it cannot be written."""
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(dict(tensors), path)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    if path.stat().st_mode != mode:
        path.chmod(mode)  # safetensors makes files private, whatever the umask
    _to_disk(path)


def write_text(path: Path, text: str) -> None:
    """Writes a partial file and renames it, so a reader sees the old text or the new one."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    _to_disk(partial)
    partial.replace(path)
    _to_disk(path.parent)


def put(new: Path, place: Path) -> None:
    """Renames a folder into place; the old one is removed last, and restored if renaming fails."""
    _to_disk(new)
    old = place.with_name(place.name + ".old")
    remove(old)
    if os.path.exists(place):
        place.replace(old)
    try:
        new.replace(place)
    except OSError:
        if os.path.exists(old):
            old.replace(place)
        raise
    _to_disk(place.parent)
    remove(old)


def remove(path: Path) -> None:
    """Removes a folder with its contents, or a file; it need not exist."""
    if os.path.isdir(path) and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if not (os.path.isdir(path) and error.errno in CANNOT_SYNC):
            raise
    finally:
        os.close(handle)


def plain_file(path: Path) -> Path:
    """Returns the path. Raises OSError if it is not a regular file: opening a pipe would block
    forever."""
    if not os.path.isfile(path):
        raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
    return path


class Whole:
    """Reads tensors by name from one file."""

    def __init__(self, path: Path) -> None:
        self._path = plain_file(path)
        with self._open() as file:
            self.names = frozenset(file.keys())

    def read(self, name: str) -> Tensor:
        with self._open() as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    @contextmanager
    def _open(self) -> Iterator[safe_open]:
        with safe_open(self._path, framework="pt") as file:
            yield file


class Rows:
    """Reads the rows of the owned classes from whatever files hold them.

    Files are named `classifier-<start>-<stop>.safetensors`. Raises ValueError if they omit a class
    or hold one twice.
    """

    def __init__(self, folder: Path, owned: Slice) -> None:
        self._files: list[tuple[Path, Slice, Slice]] = []
        found = []
        for path in folder.glob("classifier-*.safetensors"):
            start, stop = (int(part) for part in path.stem.split("-")[1:])
            found.append((Slice(start, stop), plain_file(path)))
        reached = owned.start
        for whole, path in sorted(found, key=lambda each: (each[0].start, each[0].stop)):
            low, high = max(whole.start, owned.start), min(whole.stop, owned.stop)
            if low >= high:
                continue
            if low != reached:
                raise ValueError(f"class {min(low, reached)} is in no file, or in two files")
            self._files.append((path, whole, Slice(low - whole.start, high - whole.start)))
            reached = high
        if reached != owned.stop:
            raise ValueError(f"class {reached} is in no file")
        names = [frozenset(Whole(path).names) for path, _, _ in self._files]
        if len(set(names)) != 1:
            raise ValueError("its files contain different tensors")
        (self.names,) = set(names)

    def read(self, name: str) -> Tensor:
        pieces = []
        for path, whole, rows in self._files:
            with safe_open(path, framework="pt") as file:
                stored = file.get_slice(name)
                shape = stored.get_shape()
                if not shape:
                    return torch.as_tensor(file.get_tensor(name))
                if shape[0] != whole.size:
                    raise ValueError(f"{path.name} has {shape[0]} rows of {name}")
                pieces.append(stored[rows.start : rows.stop])
        return torch.cat(pieces)
