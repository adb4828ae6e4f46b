"""Opens every image file before training and reports all unreadable files together.

Ranks that see the very same files share the work: the ranks of one machine, or of all machines with
a network file system. Machines with their own copies each check all of theirs. Files found readable
are recorded in `data.cache`, so that only new and changed files are opened again.
"""

import hashlib
import os
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
import torch
from tqdm import tqdm

from harness.config import DataConfig
from harness.data import pixels
from harness.data.images import Dataset
from harness.data.picture_source import PictureSource
from harness.data.record import Record, stamp
from harness.data.tree import shown
from harness.errors import UserError
from harness.mounts import is_on_network
from harness.parallel.machine import boot_id
from harness.parallel.world import World

ROUND_SECONDS = 1.0
"""Seconds between two reports of all ranks, for the progress bar and because Horovod warns of a
silent rank."""
NAMED = 3
"""Unreadable files named in the message; all are listed in a file."""


def verify(dataset: Dataset, world: World, config: DataConfig) -> tuple[str, ...]:
    """Raises UserError, on all ranks together, if an image file of the data set cannot be read.

    `config.verify` decides how closely files are checked, `config.on_corrupt` whether one that
    cannot be read is only listed. Returns notes for the user, one line each. Data sets of other
    kinds check their files when they are opened. Collective over the world.
    """
    sources = [
        source
        for source in (dataset.train, *dataset.validation.values())
        if isinstance(source, PictureSource)
    ]
    if config.verify == "none" or not sources:
        return ()
    # Validation images are read last, when all training is done, so they are decoded now.
    parts = [
        _Part(number, source, number > 0 or config.verify == "full")
        for number, source in enumerate(sources)
    ]
    record = Record(Path(config.cache) / f"readable-{parts[0].key}.stamps")
    seen = world.gather_objects([part.identity for part in parts], "files")
    alike = [rank for rank, files in enumerate(seen) if files == seen[world.topology.rank]]
    shares = [part.share(record, alike.index(world.topology.rank), len(alike)) for part in parts]
    own = _check_in_rounds(shares, record, world)
    found = [each for those in world.gather_objects(own, "unreadable") for each in those]
    if not found:
        whole = np.array([part.stamp() for part in parts], np.uint64)
        record.add(whole[~record.knows(whole)])
    skips = config.on_corrupt == "skip"
    message = _message(found, record, parts, listed=skips) if found else ""
    problem = None
    if found and not (skips and _replaceable(found, parts)):
        problem = UserError(f"{message}; {parts[0].pictures.remedy('them')}")
    world.raise_together(problem if world.is_first else None)
    replaced = f"{message}; the next one of its class that can be read replaces each"
    return tuple(filter(None, (record.problem, replaced if found else "")))


@dataclass(frozen=True)
class _Unreadable:
    part: int
    """0 for training, then the validation sets."""
    number: int
    path: str
    why: str
    host: str


@dataclass(frozen=True)
class _Share:
    """The files of one source that this rank checks: int64 indices, and their uint64 stamps."""

    part: "_Part"
    indices: np.ndarray
    stamps: np.ndarray


class _Part:
    """One source, and how closely its files are checked."""

    def __init__(self, number: int, source: PictureSource, closely: bool) -> None:
        self._number = number
        self.pictures, self._threads, self._closely = source.pictures, source.threads, closely
        self._files = source.pictures.files
        # Another version of Pillow or of our rule may refuse what this one reads.
        self._salt = f"{closely} {pixels.VERSION} {PIL.__version__}".encode()
        self._root = os.path.abspath(self._files.root)
        self.key = hashlib.sha256(self._root).hexdigest()[:16]
        self._state = self._files.identity()
        self.identity = self._state, "" if is_on_network(self._root) else boot_id()
        """Equal only if two processes see the very same files. A copy of a whole disk has the same
        inodes, so that what is on a disk belongs to its machine."""

    def stamp(self) -> int:
        """The stamp of all files in their current state."""
        return stamp(self._salt, self._root, self._state.encode())

    def share(self, record: Record, place: int, ranks: int) -> _Share:
        """This rank's share: every `ranks`-th file from number `place` on, except those on
        record."""
        own = range(place, len(self._files), ranks)
        if record.knows(np.array([self.stamp()], np.uint64)).all():
            own = own[:0]
        status = self._files.stats
        stamps = np.fromiter(
            (stamp(self._salt, self._root, self._files.name(i), status[i].tobytes()) for i in own),
            np.uint64,
            len(own),
        )
        new = ~record.knows(stamps)
        return _Share(self, np.array(own, np.int64)[new], stamps[new])

    def unreadable(self, indices: np.ndarray) -> list[_Unreadable | None]:
        """For each file, what is wrong with it, or None."""
        return self._threads.map(self._problem, indices.tolist())

    def _problem(self, i: int) -> _Unreadable | None:
        try:
            self.pictures.check(i, self._closely)
        except pixels.Undecodable as error:
            path = shown(os.fsencode(self._files[i]))
            return _Unreadable(self._number, i, path, str(error), socket.gethostname())
        return None


def _check_in_rounds(shares: list[_Share], record: Record, world: World) -> list[_Unreadable]:
    """The unreadable files of this rank's shares. Collective over the world."""
    remaining = sum(len(share.indices) for share in shares)
    work, found = _check(shares, record), list[_Unreadable]()
    quiet = not world.is_first
    with tqdm(desc="opening images", unit="file", delay=1.0, leave=False, disable=quiet) as bar:
        while True:
            counts = torch.tensor([float(remaining)], dtype=torch.float64)
            everyones = int(world.launch_gather(counts, "verify").wait().sum())
            bar.total = bar.total or everyones
            bar.update(bar.total - everyones - bar.n)
            if not everyones:
                return found
            until = time.monotonic() + ROUND_SECONDS
            for checked, unreadable in work:
                remaining -= checked
                found += unreadable
                if time.monotonic() > until:
                    break


def _check(shares: list[_Share], record: Record) -> Iterator[tuple[int, list[_Unreadable]]]:
    """For each chunk, the number of files checked and those that are unreadable."""
    for share in shares:
        together = share.part.pictures.together
        for start in range(0, len(share.indices), together):
            chunk = slice(start, start + together)
            problems = share.part.unreadable(share.indices[chunk])
            record.add(share.stamps[chunk][[problem is None for problem in problems]])
            yield len(problems), [problem for problem in problems if problem is not None]


def _replaceable(found: list[_Unreadable], parts: Sequence[_Part]) -> bool:
    """Whether every class keeps an image that can be read."""
    for number, part in enumerate(parts):
        lost = {each.number for each in found if each.part == number}
        if not lost:
            continue
        if not part.pictures.files_are_pictures:
            return False
        labels = part.pictures.labels
        affected, images = labels[sorted(lost)], labels.bincount()
        remaining = images - affected.bincount(minlength=len(images))
        if bool((remaining[affected] == 0).any()):
            return False
    return True


def _message(found: list[_Unreadable], record: Record, parts: Sequence[_Part], listed: bool) -> str:
    hosts = {each.host for each in found}
    named = "; ".join(
        f"{each.host + ':' if len(hosts) > 1 else ''}{each.path} ({each.why})"
        for each in found[:NAMED]
    )
    if len(found) > NAMED or listed:
        named += _list_all(found, record.path.with_suffix(".unreadable.txt"))
    files = sum(len(part.pictures.files) for part in parts)
    return f"{len(found):,} of {files:,} image files cannot be read: {named}"


def _list_all(found: list[_Unreadable], path: Path) -> str:
    """Lists all files in `path`; returns words that say so."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = (f"{each.host}\t{each.path}\t{each.why}\n" for each in found)
        path.write_text("".join(lines), "utf-8")
    except OSError as error:
        return f"; the list of all cannot be written to {path} ({error.strerror})"
    return f"; all of them are listed in {path}"
