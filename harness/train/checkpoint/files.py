"""Files of a checkpoint: a file that is renamed into place is complete and on the disk."""

import errno
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from harness.parallel.slices import Slice
from harness.whole_files import PARTIAL, to_disk

BACKBONE = "backbone.safetensors"
CLASSES = "classes.json"
"""The list of the classes' names, if they have any."""
STATES = ("optimizer.", "exchange.")
"""Prefixes of what training needs and a model does not."""
OLD = ".old"
"""Behind the name of what is being replaced or removed."""
WINDOWS = r"\d{9,18}"
"""A checkpoint's name: its number of windows."""
LEFT = re.compile(rf"{WINDOWS}({re.escape(PARTIAL)}|{re.escape(OLD)})", re.ASCII)
"""Names of what is being written, replaced or removed."""
SLICE = re.compile(r"classifier-(\d{9,})-(\d{9,})\.safetensors", re.ASCII)


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str] | None = None
) -> Path:
    """Writes tensors, and texts `about` them, to a file on the disk; returns its path.

    Raises OSError if it cannot be written.
    """
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(dict(tensors), path, dict(about) if about else None)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    if path.stat().st_mode != mode:
        path.chmod(mode)  # safetensors makes files private, whatever the umask
    to_disk(path)
    return path


def put(new: Path, place: Path) -> None:
    """Renames a folder into place; the old one is removed last, and restored if renaming fails."""
    to_disk(new)
    old = place.with_name(place.name + OLD)
    remove(old)
    if os.path.exists(place):
        place.replace(old)
    try:
        new.replace(place)
    except OSError:
        if os.path.exists(old):
            old.replace(place)
        raise
    for folder in (place.parent, place.parent.parent):  # both may be new
        to_disk(folder)
    remove(old)


def retire(folder: Path) -> None:
    """Removes a folder; a reader sees all of it, or that it is gone."""
    old = folder.with_name(folder.name + OLD)
    remove(old)
    folder.replace(old)
    remove(old)


def clear_interrupted(checkpoints: Path) -> None:
    """Removes what an interrupted run left beside its checkpoints: the checkpoint that it was
    writing, and the one that it was removing. What cannot be removed stays."""
    for path in checkpoints.glob("*"):
        if LEFT.fullmatch(path.name):
            with suppress(OSError):  # the next save of this name reports it
                remove(path)


def remove(path: Path) -> None:
    """Removes a folder with its contents, or a file; it need not exist."""
    if os.path.isdir(path) and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


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


def slice_file(owned: Slice) -> str:
    """The name of the file with the rows of these classes."""
    return f"classifier-{owned.start:09d}-{owned.stop:09d}.safetensors"


def slices_in(names: Iterable[str], owned: Slice) -> list[tuple[str, Slice]]:
    """The files that hold rows of the owned classes, in the order of classes, each with its slice.

    Raises ValueError if a class is in none of them, or in two.
    """
    found = []
    for name in names:
        if match := SLICE.fullmatch(name):
            found.append((name, Slice(*map(int, match.groups()))))
    needed, reached = [], owned.start
    for name, whole in sorted(found, key=lambda each: (each[1].start, each[1].stop)):
        low, high = max(whole.start, owned.start), min(whole.stop, owned.stop)
        if low >= high:
            continue
        if low != reached:
            raise ValueError(f"class {min(low, reached)} is in no file, or in two files")
        needed.append((name, whole))
        reached = high
    if reached != owned.stop:
        raise ValueError(f"class {reached} is in no file")
    return needed


class Rows:
    """Reads the rows of the owned classes from those of the named files that hold them.

    Raises ValueError if they omit a class or hold one twice.
    """

    def __init__(self, folder: Path, names: Iterable[str], owned: Slice) -> None:
        self._owned = owned
        self._files = [
            (plain_file(folder / name), whole) for name, whole in slices_in(names, owned)
        ]
        found = [Whole(path).names for path, _ in self._files]
        if len(set(found)) != 1:
            raise ValueError("its files contain different tensors")
        (self.names,) = set(found)

    def read(self, name: str) -> Tensor:
        pieces = []
        for path, whole in self._files:
            with safe_open(path, framework="pt") as file:
                stored = file.get_slice(name)
                shape = stored.get_shape()
                if not shape:
                    return torch.as_tensor(file.get_tensor(name))
                if shape[0] != whole.size:
                    raise ValueError(f"{path.name} has {shape[0]} rows of {name}")
                low, high = max(whole.start, self._owned.start), min(whole.stop, self._owned.stop)
                pieces.append(stored[low - whole.start : high - whole.start])
        return torch.cat(pieces)
