"""A run that ended early and goes on in its own folder: what of its record still holds."""

import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from harness.config import Config, ExchangeConfig
from harness.errors import Diverged, RunFailed
from harness.measure.summary import Restarts, RunSummary
from harness.parallel.ranks import Ranks
from harness.tracking.ended import ended
from harness.tracking.run_folder import CHECKPOINTS, CONFIG, RunFolder
from harness.train.checkpoint.choice import SHOWN, Chosen, choose_checkpoint, newest_good
from harness.train.checkpoint.manifest import BadCheckpoint
from harness.train.checkpoint.meta import read_meta
from harness.train.checkpoint.verdict import mark_bad

FIRST_WINDOWS = 10
"""A run that diverges within so many windows after a load has loaded the cause."""


@dataclass(frozen=True)
class Place:
    """Where a run's files go."""

    folder: Path | None = None
    """None: a new folder with an automatic name."""
    goes_on: bool = False
    """Whether the run in the folder, if there is one, is to go on."""

    @property
    def holds_run(self) -> bool:
        """Whether this host's folder holds a run that is to go on."""
        if self.folder is None or not self.goes_on:
            return False
        return any(map(RunFolder(self.folder).has, (CONFIG, CHECKPOINTS)))

    def agreed(self, ranks: Ranks) -> "Place":
        """The same on all ranks: the run goes on if it is in the folder of any host. Collective
        over the world."""
        return replace(self, goes_on=any(ranks.gather_objects(self.holds_run, "goes on")))


def ended_on_first(config: Config, place: Place, ranks: Ranks) -> RunSummary | None:
    """The same on all ranks, by the folder of the first, if the run in it goes on. Collective over
    the world."""
    own = None
    with ranks.together():
        if ranks.is_first and place.folder is not None and place.goes_on:
            own = ended(config, place.folder)
    summary: RunSummary | None = ranks.broadcast(own, "ended")
    return summary


def choose_start(config: Config, given: Place, ranks: Ranks) -> "Start":
    """The checkpoint to resume: of a run that goes on the newest good one in its own folder; if it
    has saved none, that of `train.resume`.

    Raises RunFailed, on all ranks, if it has saved some and none of them is good: to begin with the
    first window would remove what may still be mended. Collective over the world.
    """
    place = given.agreed(ranks)
    folder = place.folder
    if not place.goes_on or folder is None:
        return Start(place, choose_checkpoint(config, ranks))
    found, skipped = newest_good(folder, f"the run in {folder}", config, ranks)
    if found is None:
        if lost := [str(each) for each in skipped if not each.interrupted]:
            raise RunFailed(
                f"the run in {folder} has checkpoints, but none to go on from: "
                f"{', '.join(lost[:SHOWN])}; mend that, or begin anew in another --folder"
            )
        found = choose_checkpoint(config, ranks)
        if ranks.is_first:
            source = f"from {found.folder}" if found else "from the first window"
            print(f"harness: {folder} has no checkpoint; the run begins again {source}", flush=True)
    return Start(place, found)


def began_on(place: Place, ranks: Ranks) -> str | None:
    """The kind of device on which a run that goes on began; None if that is not known, and of a new
    run. Collective over the world."""
    own = RunFolder(place.folder).device if place.folder and place.goes_on else None
    return next(filter(None, ranks.gather_objects(own, "began on")), None)


@dataclass(frozen=True)
class Start:
    """From what a run starts, as all ranks have agreed."""

    place: Place
    chosen: Chosen | None

    @property
    def own(self) -> Path | None:
        """The checkpoint, if the run that goes on has written it."""
        if self.chosen is None or self.place.folder is None or not self.place.goes_on:
            return None
        own = self.place.folder.absolute() in self.chosen.folder.absolute().parents
        return self.chosen.folder if own else None

    @property
    def window(self) -> int:
        """Windows whose record holds."""
        return 0 if self.chosen is None else read_meta(self.chosen.folder).window

    def given(self, config: Config) -> Config:
        """The config with the chosen checkpoint instead of the run that holds it."""
        if self.chosen is None:
            return config
        train = config.train.model_copy(update={"resume": str(self.chosen.folder)})
        return config.model_copy(update={"train": train})


def chosen_before(start: Start, world: Ranks) -> ExchangeConfig | None:
    """The exchange that a run which goes on has recorded, if it has saved no checkpoint that says
    what it had chosen by measuring; None on another number of ranks. Collective over the world."""
    own, folder = None, start.place.folder
    with world.together():
        if world.is_first and folder and start.place.goes_on and start.own is None:
            files, recorded = RunFolder(folder), RunFolder(folder).config
            if recorded and files.ranks == world.topology.world_size:
                own = recorded.exchange
    exchange: ExchangeConfig | None = world.broadcast(own, "recorded exchange")
    return exchange


@dataclass(frozen=True)
class _Begun:
    """One line of the file of restarts."""

    restart: int
    at: float
    """When its first window began, in seconds since 1970."""
    window: int
    ranks: int
    lost_seconds: float
    """Of all restarts so far."""


def begin_again(folder: Path, checkpoint: Path | None, ranks: int) -> Restarts:
    """Records in the run's folder that it goes on now, and returns what all restarts have cost.
    Call it on the first rank.

    Lost is what lies between the copy that became the checkpoint, and now: windows that are trained
    again, the time until the failure was noticed, and the start. Times are those of the hosts'
    clocks.
    """
    own, now = RunFolder(folder), time.time()
    before = [_Begun(**line) for line in own.restarts()]
    copied, window = _copied(checkpoint) if checkpoint else (own.began(), 0)
    # What had been lost when the copy was made stays lost; what came later is part of this loss.
    earlier = [each.lost_seconds for each in before if each.at <= copied]
    lost = max(0.0, now - copied) + (earlier[-1] if earlier else 0.0)
    begun = _Begun(len(before) + 1, now, window, ranks, round(lost, 3))
    own.add_restart(json.dumps(asdict(begun)))
    return Restarts(begun.restart, begun.lost_seconds)


def _copied(checkpoint: Path) -> tuple[float, int]:
    """When a checkpoint was copied, in seconds since 1970, and after how many windows."""
    meta = read_meta(checkpoint)
    return (checkpoint.stat().st_mtime if meta.at is None else meta.at), meta.window


def condemn(checkpoint: Path | None, error: Diverged, leads: bool) -> str:
    """Marks the run's own checkpoint as bad if it diverged soon after it was loaded, so that the
    one before is taken the next time; returns a line about it, or "". One rank of each host
    `leads`."""
    if checkpoint is None or error.window is None:
        return ""
    with suppress(OSError, BadCheckpoint):
        if error.window - read_meta(checkpoint).window <= FIRST_WINDOWS:
            if leads:
                mark_bad(checkpoint, error.found)
            return f"the checkpoint {checkpoint.name} is marked bad: {error.found}"
    return ""
