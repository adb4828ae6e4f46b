"""Is there room, with permission to write, for a run's files and its prepared images?"""

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from harness.config import Config
from harness.doctor.finding import Facts, Finding, Level, format_bytes, limit_lines, listed
from harness.doctor.seat import Seat
from harness.tracking.run_folder import CHECKPOINTS

CHECK = "disk"
SPARE_BYTES = 1e9
"""Free space beyond what a run needs below which there is a warning: logs, metrics and other
programs need some."""
GLYPH_DESIGNS = 8
"""Fonts assumed when the size of the glyphs' cache is estimated."""


class Place(Facts):
    """A folder that a run writes to, and the disk that it is on."""

    purpose: str
    folder: str
    exists: bool
    """Whether the folder itself exists; else the facts are those of its nearest parent."""
    free_bytes: int
    writable: bool
    needed_bytes: int


class DiskFacts(Facts):
    """The folders that one host writes to."""

    places: list[Place]


def disk_facts(
    config: Config, checkpoint_bytes: int, first: bool, folder: Path | None = None
) -> DiskFacts:
    """Facts of one host: every host has a cache of images, the first rank's also a run's files.

    Checkpoints may go to every host; only the first knows how large they are. `folder`: the run's
    own, if it was given; what its checkpoints take already, of a run that goes on, needs no room.
    """
    places = [_place("cache", Path(config.data.cache), _cache_bytes(config))]
    if first or config.train.saves:
        needed = checkpoint_bytes * _checkpoints(config) - (_held(folder) if folder else 0)
        own = folder or Path(config.tracking.folder)
        places.append(_place("run's folder", own, max(0, needed)))
    return DiskFacts(places=places)


def judge_disk(seats: Sequence[Seat], facts: Sequence[DiskFacts | None]) -> list[Finding]:
    """Judges every folder; `facts` has one entry per rank, None except on a host's first rank."""
    faults, least = [], float("inf")
    for seat, fact in zip(seats, facts, strict=True):
        for place in fact.places if fact else []:
            least = min(least, place.free_bytes)
            faults += _faults(seat.host, place)
    where = listed(place.folder for place in facts[0].places) if facts[0] else ""
    well = f"at least {format_bytes(least)} free on every host in {where}"
    return limit_lines(faults, Finding(check=CHECK, level="ok", found=well))


def _faults(host: str, place: Place) -> list[Finding]:
    key = "data.cache" if place.purpose == "cache" else "tracking.folder or --folder"
    where = f"the {place.purpose} {place.folder} on {host}"
    # A cache that exists may already hold all images, so it may not need to be written.
    serious: Level = "warn" if place.purpose == "cache" and place.exists else "fail"
    if not place.writable:
        found, advice = f"cannot write {where}", f"fix its permissions, or set {key}"
        return [Finding(check=CHECK, level=serious, found=found, advice=advice)]
    if place.free_bytes >= place.needed_bytes + SPARE_BYTES:
        return []
    level = serious if place.free_bytes < place.needed_bytes else "warn"
    found = f"{where} has {format_bytes(place.free_bytes)} free, but this run writes about "
    advice = f"free space, or set {key} to a folder on another disk"
    return [
        Finding(
            check=CHECK, level=level, found=found + format_bytes(place.needed_bytes), advice=advice
        )
    ]


def _place(purpose: str, folder: Path, needed: int) -> Place:
    folder = folder.absolute()
    there = next(parent for parent in (folder, *folder.parents) if os.path.exists(parent))
    return Place(
        purpose=purpose,
        folder=str(folder),
        exists=there == folder,
        free_bytes=shutil.disk_usage(there).free,
        writable=os.path.isdir(there) and os.access(there, os.W_OK | os.X_OK),
        needed_bytes=needed,
    )


def _held(folder: Path) -> int:
    """Bytes of a run's checkpoints, whole or not."""
    held = 0
    for inside, _, names in os.walk(folder / CHECKPOINTS):
        for name in names:
            with suppress(OSError):  # it has just been removed
                held += os.lstat(os.path.join(inside, name)).st_size
    return held


def _cache_bytes(config: Config) -> int:
    if config.data.dataset != "glyphs":
        return 0
    return GLYPH_DESIGNS * config.data.num_classes * config.data.image_size**2


def _checkpoints(config: Config) -> int:
    """The most checkpoints that are on the disk at once."""
    train, keep = config.train, config.train.keep_checkpoints
    if not train.checkpoint_every:
        return int(train.save)
    # A run measured in epochs has an unknown number of windows here: count at least one checkpoint.
    found = train.steps // train.checkpoint_every + train.save if train.steps else keep + 1
    # An older one goes when the next is complete.
    return min(found, keep + 1) if keep else found
