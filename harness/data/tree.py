"""Which files in a tree of class folders are images, and which entries are left out."""

import hashlib
import os
import stat
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from harness.errors import UserError

SUFFIXES = frozenset(
    b"jpg jpeg jpe jfif png apng gif webp bmp dib tif tiff ppm pgm pbm pnm pfm jp2 avif".split()
)
"""File name suffixes of images, without the dot, in lower case; a file's content decides its
format."""
NOT_DATA = frozenset((b"__MACOSX", b"@eaDir", b"lost+found"))
"""Folders that archives, storage servers and file systems add. Names that begin with a dot are
ignored too."""
KINDS_NAMED = 6
LONGEST_SUFFIX = 10
LARGEST = (1 << 63) - 1

FileIdentity = tuple[int, int]
"""Device and inode."""


class ImageTree:
    """The images of root/CLASS/**, sorted by the bytes of their names, independent of the locale.

    Links to files and folders are followed at every depth. A folder is read once per class, however
    many links lead to it, so circular links end; a file counts once for each of its names. A
    million files take about 60 MB of memory.

    Raises UserError for a folder that cannot be read and for a class without an image.
    """

    def __init__(self, root: str, classes: Sequence[bytes]) -> None:
        self.root = os.fsencode(root)
        self._names = bytearray()
        self._ends = array("q")
        self._stats = array("q")
        self._counts: list[int] = []
        self.left_out: Counter[str] = Counter()
        """Number of entries left out, by reason."""
        for name in classes:
            self._read_class(name)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, i: int) -> str:
        """The file's path."""
        return os.fsdecode(os.path.join(self.root, self.name(i)))

    def name(self, i: int) -> bytes:
        """The file's path below the root: CLASS/.../FILE."""
        return bytes(self._names[self._ends[i - 1] if i else 0 : self._ends[i]])

    @property
    def labels(self) -> Tensor:
        """int64 [files]; classes are numbered in the order in which they were given."""
        return torch.arange(len(self._counts)).repeat_interleave(torch.tensor(self._counts))

    @property
    def stats(self) -> np.ndarray:
        """int64 [files, 3]: inode, size in bytes, time of the last change in ns."""
        return np.frombuffer(self._stats, np.int64).reshape(-1, 3)

    def identity(self) -> str:
        """A digest that is equal only if two processes see the very same files, or those of copied
        disks.

        Copies of files have other inodes; files of a shared file system have the same inodes on all
        hosts.
        """
        digest = hashlib.sha256()
        for part in (memoryview(self._names), memoryview(self._ends), self.stats.data):
            digest.update(part)
        return digest.hexdigest()

    def _read_class(self, name: bytes) -> None:
        before, left_before = len(self), self.left_out.copy()
        folder = os.path.join(self.root, name)
        # Links to these folders would bring in other classes, also from a class that is itself a
        # link.
        above = os.path.dirname(self.root) or b"."
        entered = {_identity(path) for path in (above, self.root)}
        for inside, status in _images_below(folder, entered, self.left_out):
            self._names += os.path.join(name, inside)
            self._ends.append(len(self._names))
            # Some file systems number files with 64-bit hashes, but elements of this array are
            # signed.
            number = status.st_ino & LARGEST
            self._stats.extend((number, status.st_size, status.st_mtime_ns))
        self._counts.append(len(self) - before)
        if len(self) == before:
            left = format_counts(self.left_out - left_before)
            raise UserError(
                f"{shown(folder)} has no images{f' (but {left})' if left else ''}; add some, "
                f"named {', '.join(sorted('.' + kind.decode() for kind in SUFFIXES))}, or remove "
                f"the class from train/ and val/"
            )


def class_folders(root: str, left_out: Counter[str]) -> list[bytes]:
    """Names of the class folders in `root`, sorted by their bytes."""
    names = []
    for entry in visible(os.fsencode(root)):
        if _is_folder(entry):
            names.append(entry.name)
        else:
            left_out["entries outside the class folders"] += 1
    return names


def shown(name: bytes) -> str:
    """A name for people and for digests: one line, whatever its bytes are."""
    text = name.decode("utf-8", "backslashreplace")
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


def format_counts(left_out: Counter[str]) -> str:
    """E.g. `files of type .heic (12), broken links (1)`; "" if nothing was left out."""
    kinds = sorted(left_out.items(), key=lambda kind: (-kind[1], kind[0]))
    if len(kinds) > KINDS_NAMED:
        kinds[KINDS_NAMED:] = [("others", sum(count for _, count in kinds[KINDS_NAMED:]))]
    return ", ".join(f"{reason} ({count:,})" for reason, count in kinds)


def _images_below(
    folder: bytes, entered: set[FileIdentity], left_out: Counter[str]
) -> Iterator[tuple[bytes, os.stat_result]]:
    """Image names relative to `folder`, in order, with their status. Adds every folder read to
    `entered`."""
    # A stack, not recursion: folders may be nested deeper than Python's calls.
    waiting: list[tuple[bytes, os.DirEntry[bytes] | None]] = [(b"", None)]
    while waiting:
        name, entry = waiting.pop()
        if entry is None or _is_folder(entry):
            path = os.path.join(folder, name)
            identity = _identity(path)
            if identity in entered:
                left_out["links to folders already read"] += 1
                continue
            if _leads_up(path):
                left_out["links to folders that contain the class"] += 1
                continue
            entered.add(identity)
            inside = visible(path)
            waiting += [(os.path.join(name, each.name), each) for each in reversed(inside)]
        elif (reason := _no_image(entry)) is not None:
            left_out[reason] += 1
        else:
            yield name, entry.stat()


def visible(path: bytes) -> list[os.DirEntry[bytes]]:
    """The visible entries of a folder, sorted by the bytes of their names."""
    with _readable(path), os.scandir(path) as entries:
        seen = [
            entry
            for entry in entries
            if not entry.name.startswith(b".") and entry.name not in NOT_DATA
        ]
    return sorted(seen, key=lambda entry: entry.name)


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or through a folder that this user may not read
        return False


def _leads_up(path: bytes) -> bool:
    """Whether a folder is a link to a folder above it: a link to / would make us read the whole
    disk."""
    if not os.path.islink(path):
        return False
    target = os.path.realpath(path)
    return os.path.commonpath([target, os.path.realpath(os.path.dirname(path))]) == target


def _no_image(entry: os.DirEntry[bytes]) -> str | None:
    """The reason to leave out an entry that is not a folder; None if it is an image."""
    _, dot, suffix = entry.name.lower().rpartition(b".")
    named_so = bool(dot) and suffix in SUFFIXES
    try:
        status = entry.stat() if named_so or entry.is_symlink() else None
    except OSError:
        return "broken links"
    if not named_so:
        kind = dot and 0 < len(suffix) <= LONGEST_SUFFIX
        return f"files of type .{shown(suffix)}" if kind else "files without a type"
    return (
        None
        if status is not None and stat.S_ISREG(status.st_mode)
        else "pipes, sockets and devices"
    )


def _identity(folder: bytes) -> FileIdentity:
    with _readable(folder):
        status = os.stat(folder)
    return status.st_dev, status.st_ino


@contextmanager
def _readable(folder: bytes) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot read the folder {shown(folder)}: {error.strerror}; fix or remove it"
        ) from error
