"""Packs a folder into shards. A finished shard survives an interruption, and is not made again."""

import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from harness.data.classes import PARTS, Classes, classes_of
from harness.data.folder import notes_of, trees_of
from harness.data.pack import (
    DESCRIPTION,
    FORMAT,
    LEFT_OUT,
    SUFFIX,
    Description,
    Kind,
    Shard,
    ShardFile,
    read_description,
)
from harness.data.tree import ImageTree, shown
from harness.errors import RunFailed, UserError
from harness.locking import lock
from harness.pack.parallel import make_shards
from harness.pack.shard import Job, record_of, write_record
from harness.whole_files import PARTIAL, write_text

OWN = re.compile(
    rf"({'|'.join(PARTS)})-\d{{5,}}"
    rf"({re.escape(SUFFIX)}|\.json|\.json{re.escape(PARTIAL)}|\.partial|\.partial-record)",
    re.ASCII,
)
"""The names of shards, of their records, and of those whose writing was interrupted, here or in an
earlier version."""
BESIDE = (DESCRIPTION, LEFT_OUT, DESCRIPTION + PARTIAL)
"""The names of a pack's other files."""
IMAGES = 4096
"""Pictures of a shard: a million make 245 files of about a gigabyte."""
ASPECT = 4 / 3
"""Longer side over shorter side, as most cameras have it: for an estimate of the disk."""
SHARE_OF_JPEG = 0.2
"""Size of a JPEG relative to its pixels, roughly."""


def pack(
    source: Path, target: Path, side: int, kind: Kind, processes: int, images: int = IMAGES
) -> str:
    """Packs the folder `source` into the folder `target`, or what is not packed yet.

    `side` is the shorter side that larger pictures are reduced to, `images` the number of pictures
    of a shard. Returns a sentence on the result. Raises UserError, before anything is written, for
    a folder that does not fit, and RunFailed if the disk fails.
    """
    left_out: dict[str, Counter[str]] = {part: Counter() for part in PARTS}
    _check_folders(source, target)
    classes = classes_of(source, left_out)
    trees = trees_of(source, classes, left_out)
    jobs = [job for part in PARTS for job in _jobs(part, trees[part], classes, side, kind, images)]
    with _locked(target):
        made = _finished(target, jobs)
        missing = [job for job in jobs if job.name not in made]
        _check_room(target, missing)
        try:
            if missing:
                _take_apart(target, jobs, made)
                made |= make_shards(missing, target, processes)
            shards = {
                part: tuple(made[job.name] for job in jobs if job.part == part) for part in PARTS
            }
            labels = {part: _labels(target, of_part) for part, of_part in shards.items()}
            lost = _lost(classes, labels["val"])
            found = Description(
                format=FORMAT,
                kind=kind,
                side=side,
                classes=tuple(map(shown, classes.train)),
                notes=(*notes_of(source, classes, trees, left_out), *lost),
                shards=shards,
            )
            _finish(target, found, labels)
        except OSError as error:
            raise RunFailed(
                f"cannot write the pack {target}: {error.strerror}; free space there and run the "
                f"same command again: what is finished is kept"
            ) from error
    return _sentence(target, found)


def _check_folders(source: Path, target: Path) -> None:
    if not source.is_dir():
        raise UserError(f"{source} is not a folder; name one that contains train/ and val/")
    if (source / DESCRIPTION).exists():
        raise UserError(f"{source} is a pack already; name the folder that it was made from")
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file; give the pack another name with --to")
    foreign = [
        entry.name
        for entry in (target.iterdir() if target.exists() else ())
        if not (entry.name.startswith(".") or entry.name in BESIDE or _is_of_shard(entry))
    ]
    if foreign:
        raise UserError(
            f"{target} holds other files, the first is {min(foreign)}; give the pack a folder of "
            f"its own with --to"
        )


def _is_of_shard(entry: Path) -> bool:
    """Whether a run of harness pack wrote it for a shard."""
    return OWN.fullmatch(entry.name) is not None and entry.is_file()


def _jobs(
    part: str, tree: ImageTree, classes: Classes, side: int, kind: Kind, images: int
) -> Iterator[Job]:
    labels = classes.labels(part)[tree.labels].tolist()
    for number, first in enumerate(range(0, len(tree), images)):
        of = range(first, min(first + images, len(tree)))
        yield Job(
            part=part,
            number=number,
            root=os.fsdecode(tree.root),
            files=tuple(map(tree.name, of)),
            labels=tuple(labels[of.start : of.stop]),
            # Without the inode: a copy of the folder may continue the pack.
            stats=tree.stats[of.start : of.stop, 1:].tobytes(),
            side=side,
            kind=kind,
        )


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Inside the block no other process packs into `target`."""
    try:
        target.mkdir(parents=True, exist_ok=True)
        file = (target / ".lock").open("w")
    except OSError as error:
        raise UserError(
            f"cannot write {target}: {error.strerror}; give the pack another place with --to"
        ) from error
    with file:
        if not lock(file, wait_seconds=0):
            raise UserError(f"another harness pack is writing {target}; wait for it")
        yield


def _finished(target: Path, jobs: list[Job]) -> dict[str, Shard]:
    """The shards that are there, made of the same files in the same way, by the jobs' names."""
    known: dict[str, Shard] = {}
    if (target / DESCRIPTION).exists():
        shards = read_description(target).shards.values()
        known = {Path(shard.name).stem: shard for of in shards for shard in of}
    for job in jobs:
        try:
            known[job.name] = Shard.model_validate_json(record_of(target, job).read_text("utf-8"))
        except (OSError, ValidationError):
            continue
    return {
        job.name: known[job.name]
        for job in jobs
        if job.name in known
        and known[job.name].key == job.key
        # What could not be read may be readable by now: a network disk was away, say.
        and not known[job.name].left_out
        and _size(target / known[job.name].name) == known[job.name].bytes
    }


def _take_apart(target: Path, jobs: list[Job], made: dict[str, Shard]) -> None:
    """Removes the description of a pack, whose shards then have records of their own."""
    for job in jobs:
        if job.name in made:
            write_record(target, job, made[job.name])
    (target / DESCRIPTION).unlink(missing_ok=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1


def _check_room(target: Path, jobs: list[Job]) -> None:
    """Raises UserError if the disk is too small for pictures of the usual shape, of which small
    files make small ones."""
    if not jobs:
        return
    share = 1.0 if jobs[0].kind == "pixels" else SHARE_OF_JPEG
    files = np.concatenate([job.file_bytes for job in jobs])
    most = jobs[0].side ** 2 * ASPECT * 3
    needed = share * float(np.minimum(files / SHARE_OF_JPEG, most).sum())
    free = shutil.disk_usage(target).free
    if needed > free:
        raise UserError(
            f"the pack takes up to {needed / 1e9:,.1f} GB, and {target} has {free / 1e9:,.1f} GB "
            f"free; lower --side, use --keep jpeg, or give it another disk with --to"
        )


def _labels(target: Path, shards: Sequence[Shard]) -> np.ndarray:
    """The labels of which the shards hold a picture, ascending."""
    indices = [ShardFile(target, shard).index["label"] for shard in shards]
    return np.unique(np.concatenate(indices))


def _lost(classes: Classes, found: np.ndarray) -> tuple[str, ...]:
    """A line on the classes of val/ of which no picture could be read, if there are any."""
    lost = np.setdiff1d(classes.labels("val").numpy(), found).tolist()
    if not lost:
        return ()
    named = ", ".join(shown(classes.train[label]) for label in lost[:3])
    return (
        f"of {len(lost):,} of the {len(classes.val):,} classes of val/ no image could be read when "
        f"this pack was made, so accuracy is measured on the others: {named}"
        f"{' ...' if len(lost) > 3 else ''}; {LEFT_OUT} lists the files",
    )


def _check_classes(pack: Description, target: Path, labels: Mapping[str, np.ndarray]) -> None:
    """Raises UserError for a class that has no readable picture to train on. `labels`: those of
    which each part holds a picture."""
    for part, found in labels.items():
        needed = np.arange(len(pack.classes)) if part == "train" else found
        lacking = np.setdiff1d(needed, found).tolist()
        if not len(found) or lacking:
            which = f"class {pack.classes[lacking[0]]} of train/" if lacking else "val/"
            raise UserError(
                f"{which} has no image that can be read; they are listed in {target / LEFT_OUT}: "
                f"replace them and run the same command again"
            )


def _write_left_out(pack: Description, target: Path) -> None:
    lines = [
        f"{path}\t{why}\n"
        for shards in pack.shards.values()
        for shard in shards
        for path, why in shard.left_out
    ]
    (target / LEFT_OUT).write_text("".join(lines), "utf-8")


def _finish(target: Path, pack: Description, labels: Mapping[str, np.ndarray]) -> None:
    """Writes the list of what was left out and the description, then removes what is no part of the
    pack."""
    _write_left_out(pack, target)
    _check_classes(pack, target, labels)
    write_text(target / DESCRIPTION, pack.model_dump_json(indent=1))
    kept = {shard.name for shards in pack.shards.values() for shard in shards}
    for entry in target.iterdir():
        if _is_of_shard(entry) and entry.name not in kept:
            entry.unlink()


def _sentence(target: Path, pack: Description) -> str:
    shards = [shard for of in pack.shards.values() for shard in of]
    size, left_out = sum(each.bytes for each in shards), sum(len(each.left_out) for each in shards)
    classes = len(pack.classes)
    sentence = (
        f"{pack.images('train'):,} + {pack.images('val'):,} images of {classes:,} classes are "
        f"packed in {target}: {size / 1e9:.2f} GB in {len(shards)} files; read them by "
        f"data.dataset=image_folder data.root={target} data.num_classes={classes}"
    )
    if left_out:
        sentence += f"\n{left_out:,} files could not be read; {target / LEFT_OUT} lists them"
    return sentence
