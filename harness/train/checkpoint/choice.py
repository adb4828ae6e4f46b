"""Chooses the checkpoint that a run resumes: one whose files are as written, on every host."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.config import Config
from harness.errors import UserError
from harness.parallel.launcher import launched
from harness.parallel.ranks import Ranks
from harness.parallel.slices import slice_of
from harness.tracking.run_folder import CHECKPOINTS, META
from harness.train.checkpoint.files import BACKBONE, CLASSES, WINDOWS, slices_in
from harness.train.checkpoint.manifest import BadCheckpoint, check_file
from harness.train.checkpoint.meta import Meta, read_meta
from harness.train.checkpoint.verdict import why_bad
from harness.whole_files import PARTIAL

NAME = re.compile(rf"({WINDOWS})({re.escape(PARTIAL)})?", re.ASCII)
ITSELF = "."
"""The only name in a folder that is a checkpoint itself."""
SHOWN = 3
"""Most checkpoints that a refusal lists."""


@dataclass(frozen=True)
class Chosen:
    """The checkpoint to resume."""

    folder: Path
    """As this rank's host sees it."""
    note: str
    """One line for the user, or ""."""


@dataclass(frozen=True)
class Skipped:
    """A checkpoint that cannot be resumed."""

    name: str
    problem: str

    @property
    def interrupted(self) -> bool:
        """Whether its writing never ended, so that nothing was saved."""
        return self.name.endswith(PARTIAL)

    def __str__(self) -> str:
        return self.problem if self.name == ITSELF else f"{self.name}: {self.problem}"


def choose_checkpoint(config: Config, ranks: Ranks) -> Chosen | None:
    """The checkpoint that `train.resume` names, or the newest good one of the run that it names.

    Before that, all files that ranks will read are compared with their checksums; the ranks of a
    host share that work. Raises UserError, on one rank, if there is no good one. Collective over
    the world.
    """
    if config.train.resume is None:
        return None
    source = f"train.resume={config.train.resume}"
    found, skipped = newest_good(Path(config.train.resume), source, config, ranks)
    with ranks.together():
        if found is None and ranks.is_first:
            raise UserError(f"{source} {_refusal(skipped)}")
    return found


def newest_good(
    given: Path, source: str, config: Config, ranks: Ranks
) -> tuple[Chosen | None, list[Skipped]]:
    """The newest good checkpoint of a run's folder, or the one that the folder is, and those that
    were skipped. `source` names the folder in messages.

    Raises UserError, on one rank, if a folder cannot be looked into. Collective over the world.
    """
    readers = _Readers.of(config, given, ranks)
    here: list[str] = []
    with ranks.together():
        here = names_in(given)
    names = set().union(*ranks.gather_objects(here, "checkpoints"))
    if ITSELF in names:
        names = {ITSELF}
    skipped: list[Skipped] = []
    for name in newest_first(names):
        folder = holder(given) / name
        looks = ranks.gather_objects(readers.look(folder), "checkpoint")
        problem = readers.problem(looks, folder, ranks)
        if not problem:
            _check_classes(source, looks[0], config, ranks)
            return Chosen(folder, _note(source, folder, skipped, looks[0])), skipped
        skipped.append(Skipped(name, problem))
    return None, skipped


def holder(given: Path) -> Path:
    """The folder that holds checkpoints, if it is in a run's folder; else the given one."""
    inside = given / CHECKPOINTS
    return inside if os.path.isdir(inside) else given


def names_in(given: Path) -> list[str]:
    """The names of the checkpoints in a folder, complete or not; `ITSELF` if it is one.

    Raises UserError for a folder that is there and cannot be looked into, as on a disk that does
    not answer: it may hold some.
    """
    if os.path.exists(given / META):
        return [ITSELF]
    for folder in (given / CHECKPOINTS, given):
        try:
            return [name for name in os.listdir(folder) if NAME.fullmatch(name)]
        except (FileNotFoundError, NotADirectoryError, ValueError):
            continue
        except OSError as error:
            raise UserError(
                f"cannot look for checkpoints in {folder} ({error.strerror}); mend the disk, or "
                f"its permissions"
            ) from error
    return []


def newest_first(names: set[str]) -> list[str]:
    return sorted(names, key=lambda name: (name.removesuffix(PARTIAL).zfill(18), name))[::-1]


@dataclass(frozen=True)
class _Look:
    """What a rank found of one checkpoint."""

    problem: str = ""
    identity: str = ""
    num_classes: int = 0
    verified: bool = False
    missing: str = ""
    """A file that ranks here will read and that is not there."""


@dataclass(frozen=True)
class _Readers:
    """Which files this rank looks at, for all ranks of its host."""

    places: tuple[tuple[str, str], ...]
    """The host of every rank, and the folder that it was given."""
    rank: int
    owners: int
    """Ranks in a slice group."""

    @classmethod
    def of(cls, config: Config, given: Path, ranks: Ranks) -> "_Readers":
        places = ranks.gather_objects((launched().host, str(given)), "checkpoint readers")
        topology = ranks.topology
        owners = len(topology.slice_group(config.classifier.layout))
        return cls(tuple(places), topology.rank, owners)

    def look(self, folder: Path) -> _Look:
        if folder.name.endswith(PARTIAL):
            return _Look("it is incomplete: its writing was interrupted, or goes on")
        if not os.path.exists(folder / META):
            return _Look(f"{META} is missing", missing=META)
        if bad := why_bad(folder):
            return _Look(bad)
        try:
            meta = read_meta(folder)
            for name in self._share(meta, folder):
                if not os.path.exists(folder / name):
                    return _Look(f"{name} is missing", missing=name)
                if meta.files is not None:
                    check_file(folder / name, meta.files.get(name))
        except BadCheckpoint as error:
            return _Look(str(error))
        return _Look("", meta.identity, meta.num_classes, meta.files is not None)

    def _share(self, meta: Meta, folder: Path) -> list[str]:
        """Each file that ranks of this host will read is in the share of one of them."""
        own = self.places[self.rank]
        here = [rank for rank, place in enumerate(self.places) if place == own]
        files = {BACKBONE}
        try:
            names = meta.names_in(folder)
            files |= {CLASSES}.intersection(names)
            for owner in {rank % self.owners for rank in here}:
                owned = slice_of(meta.num_classes, self.owners, owner)
                files |= {name for name, _ in slices_in(names, owned)}
        except (OSError, ValueError) as error:
            raise BadCheckpoint(str(error)) from error
        return sorted(files)[here.index(self.rank) :: len(here)]

    def problem(self, looks: Sequence[_Look], folder: Path, ranks: Ranks) -> str:
        """What is wrong with a checkpoint, by what all ranks found of it; "" if it is good.

        Collective over the world, by what `looks` say.
        """
        hosts = [host for host, _ in self.places]
        for host, look in zip(hosts, looks, strict=True):
            if not look.problem:
                continue
            if len(set(self.places)) == 1:
                return look.problem
            there = bool(look.missing) and os.path.exists(folder / look.missing)
            having = ranks.gather_objects(there, "checkpoint holders")
            others = dict.fromkeys(name for name, has in zip(hosts, having, strict=True) if has)
            return f"{look.problem} (on {host}{'; it is on ' if others else ''}{', '.join(others)})"
        for host, look in zip(hosts, looks, strict=True):
            if look.identity != looks[0].identity:
                return f"{host} and {hosts[0]} have different ones; copy one of them to both"
        return ""


def _check_classes(source: str, look: _Look, config: Config, ranks: Ranks) -> None:
    with ranks.together():
        if ranks.is_first and look.num_classes != config.data.num_classes:
            raise UserError(
                f"{source} has {look.num_classes} classes, but "
                f"data.num_classes is {config.data.num_classes}; "
                f"set data.num_classes={look.num_classes}"
            )


def _note(source: str, folder: Path, skipped: Sequence[Skipped], look: _Look) -> str:
    parts = []
    if skipped:
        parts.append(f"skipped {', '.join(map(str, skipped))}")
    if not look.verified:
        parts.append("it is older than checksums, so nobody can tell whether its files are whole")
    taken = f"{source} takes {folder.name}"
    return "; ".join([taken, *parts]) if parts else ""


def _refusal(skipped: Sequence[Skipped]) -> str:
    if not skipped:
        return (
            f"is not a checkpoint (no readable {META}) and holds none; give a folder "
            f"{CHECKPOINTS}/<window> of a run, or the run's folder for its newest good one"
        )
    found = ", ".join(map(str, skipped[:SHOWN])) + (", ..." if len(skipped) > SHOWN else "")
    return (
        f"cannot be resumed: {found}; give another checkpoint, or the folder of a run for its "
        f"newest good one"
    )
