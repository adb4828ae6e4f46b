"""Is there room, and leave to write, where a run puts its files and its prepared images?"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from harness.config import Config
from harness.doctor.finding import Facts, Finding, Level, in_bytes, listed, told
from harness.doctor.seat import Seat

CHECK = "disk"
SPARE_BYTES = 1e9
"""Less than this beside what a run needs is a warning: logs, metrics, whoever else writes there."""
GLYPH_DESIGNS = 8
"""Fonts that the glyphs' cache is counted with."""


class Place(Facts):
    purpose: str
    folder: str
    exists: bool
    free_bytes: int
    writable: bool
    needed_bytes: int


class DiskFacts(Facts):
    places: list[Place]


def disk_facts(config: Config, checkpoint_bytes: int, first: bool) -> DiskFacts:
    """Of one host; only the first rank's keeps a run's files, all prepare images."""
    places = [_place("cache", Path(config.data.cache), _cache_bytes(config))]
    if first:
        needed = checkpoint_bytes * _checkpoints(config)
        places.append(_place("run's folder", Path(config.tracking.folder), needed))
    return DiskFacts(places=places)


def judge_disk(seats: Sequence[Seat], facts: Sequence[DiskFacts | None]) -> list[Finding]:
    """`facts` are None for ranks that do not speak."""
    faults, least = [], float("inf")
    for seat, fact in zip(seats, facts, strict=True):
        for place in fact.places if fact else []:
            least = min(least, place.free_bytes)
            faults += _faults(seat.host, place)
    where = listed(place.folder for place in facts[0].places) if facts[0] else ""
    well = f"{in_bytes(least)} or more free on every host in {where}"
    return told(faults, Finding(check=CHECK, level="ok", found=well))


def _faults(host: str, place: Place) -> list[Finding]:
    key = "data.cache" if place.purpose == "cache" else "tracking.folder"
    where = f"the {place.purpose} {place.folder} on {host}"
    # A cache that is there may hold all images already.
    serious: Level = "warn" if place.purpose == "cache" and place.exists else "fail"
    if not place.writable:
        found, advice = f"cannot write {where}", f"fix its permissions, or set {key}"
        return [Finding(check=CHECK, level=serious, found=found, advice=advice)]
    if place.free_bytes >= place.needed_bytes + SPARE_BYTES:
        return []
    level = serious if place.free_bytes < place.needed_bytes else "warn"
    found = f"{where} has {in_bytes(place.free_bytes)} free, this run writes about "
    advice = f"free some, or set {key} to another disk"
    return [
        Finding(check=CHECK, level=level, found=found + in_bytes(place.needed_bytes), advice=advice)
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


def _cache_bytes(config: Config) -> int:
    if config.data.dataset != "glyphs":
        return 0
    return GLYPH_DESIGNS * config.data.num_classes * config.data.image_size**2


def _checkpoints(config: Config) -> int:
    train = config.train
    regular = train.steps // train.checkpoint_every if train.checkpoint_every and train.steps else 0
    # Of a run measured in epochs the number is not known here: one, at least.
    return regular + bool(train.save or (train.checkpoint_every and not train.steps))
