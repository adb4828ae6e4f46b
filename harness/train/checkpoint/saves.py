"""When a run saves its model, and what happens if a save fails; a thread writes."""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from harness.errors import RunFailed
from harness.exchange.carried import Strip
from harness.measure.phase import Phase
from harness.parallel.pulse import SAVE_WAIT
from harness.tracking.run_folder import CHECKPOINTS, RunFolder
from harness.train.checkpoint.files import BACKBONE, CLASSES, clear_interrupted
from harness.train.checkpoint.meta import Meta
from harness.train.checkpoint.places import Places
from harness.train.checkpoint.writing import Copies, Moved, Unwritten, Writer
from harness.train.ledger import Journal
from harness.train.step import Step

LEAVE_SECONDS = 30.0
"""Longest wait for a checkpoint under way if the run ends with an error."""
LOOK_SECONDS = 1.0
"""Time between two looks at the thread while a rank waits for it."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class _Save:
    """A save under way."""

    folder: Path
    meta: Meta
    last: bool
    """Whether it is the run's last one."""
    written: Future[Meta]
    judged: Future[str] | None = None
    """Reason why older ones are still there or the evaluation is not in the metadata, or ""."""
    good: bool = False

    @property
    def done(self) -> bool:
        return self.judged is not None and self.judged.done()


class Saves:
    """The saves of one run, in its folder `checkpoints/<windows>`.

    Training stands still only while it copies what it will change; a thread writes the copies. A
    second save waits for the first. Every method is collective over the world.
    """

    def __init__(self, step: Step, folder: Path, places: Places) -> None:
        self._step = step
        self._places = places
        self._config = step.config.train
        self._folder = folder
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._under_way: _Save | None = None
        if places.leads(step.world.topology.rank):
            clear_interrupted(folder / CHECKPOINTS)
        self._kept = self._before()
        """Good checkpoints of this run, the oldest first; the thread's own."""
        self._good: Path | None = None
        self._unsaved = ""

    def _before(self) -> list[Path]:
        """The checkpoints up to the resumed one, if they are of this run, which goes on. What the
        first rank sees decides: ranks remove them together."""
        resumed, runs, world = self._step.resumed, RunFolder(self._folder), self._step.world
        if resumed is None:
            return []
        found = runs.checkpoints() if world.is_first else []
        windows = world.broadcast(found, "kept checkpoints")
        return [runs.checkpoint(each) for each in windows if each <= resumed.window]

    @cached_property
    def _writer(self) -> Writer:
        world = self._step.world
        return Writer(world.gathers("checkpoint"), self._places.leads(world.topology.rank))

    def due(self, ended: int) -> bool:
        """Whether the model is saved after `ended` windows."""
        every = self._config.checkpoint_every
        regular = bool(every) and ended % every == 0
        return regular or (self._config.save and ended == self._step.course.windows)

    def has(self, ended: int) -> bool:
        """Whether the last good checkpoint, as far as it is settled, is of these windows."""
        return self._good == RunFolder(self._folder).checkpoint(ended)

    def save(self, meta: Meta, carried: Sequence[Strip], journal: Journal) -> None:
        """Saves the model. If that fails, a warning is printed later and training continues."""
        self.settle(journal)
        folder = RunFolder(self._folder).checkpoint(meta.window)
        written = self._thread.submit(
            partial(self._writer.write, folder, self._copies(carried), meta)
        )
        self._under_way = _Save(folder, meta, meta.window == self._step.course.windows, written)

    def _copies(self, carried: Sequence[Strip]) -> Copies:
        found: dict[str, Mapping[str, Tensor] | str] = {
            **self._step.checkpoint.copies(self._places, carried)
        }
        names = self._step.model.data.class_names
        if names and BACKBONE in found:
            found[CLASSES] = json.dumps(names)
        return found

    def judged(self, meta: Meta, good: bool) -> None:
        """Adds to the save under way what was measured after it. If it is `good`, those before it
        are removed that are not to be kept."""
        save = self._under_way
        assert save is not None
        assert save.meta.window == meta.window
        judged = self._thread.submit(partial(self._judge, save, meta, good))
        self._under_way = _Save(save.folder, save.meta, save.last, save.written, judged, good)

    def _judge(self, save: _Save, meta: Meta, good: bool) -> str:
        """The thread runs it after the writing."""
        if save.written.exception() is not None:
            return ""
        try:
            if len(meta.progress.evaluations) > len(save.meta.progress.evaluations):
                files = save.written.result().files
                self._writer.rewrite(save.folder, meta.model_copy(update={"files": files}))
            if good:
                self._kept.append(save.folder)
            keep = self._config.keep_checkpoints
            while good and keep and len(self._kept) > keep:
                self._writer.remove(self._kept[0])
                del self._kept[0]  # otherwise it is tried again after the next save
        except Unwritten as error:
            return str(error)
        return ""

    def look(self, journal: Journal) -> None:
        """Tells what became of the save under way if it has ended. Does not wait."""
        if self._under_way and self._under_way.done:
            self.settle(journal)

    def settle(self, journal: Journal) -> None:
        """Waits for the save under way and tells what became of it."""
        save, self._under_way = self._under_way, None
        if save is None:
            return
        try:
            self._result(save.written)
        except Unwritten as error:
            line = f"the checkpoint {save.folder} cannot be written ({error})"
            if save.last:
                self._unsaved = line
            else:
                line += "; training continues without it"
            journal.warn("checkpoint", f"{line}; free space, or make the folder writable")
            return
        if save.good:
            self._good = save.folder
        if save.judged and (problem := self._result(save.judged)):
            journal.warn(
                "after_checkpoint",
                f"{save.folder} is complete, but what follows it failed ({problem}): its "
                f"evaluation is not in it, or an older one is still there",
            )

    def _result(self, future: "Future[Result]") -> Result:
        """What the thread returns. While the thread gets on, this rank counts as moving, however
        slow a disk is; while the thread waits for other ranks, so does this rank."""
        pulse = self._step.world.meters.pulse
        before: Moved | None = None
        while not future.done():
            now = self._writer.moved
            if now != before:
                pulse.show(SAVE_WAIT if now.waits else Phase.OTHER)
            before = now
            wait([future], LOOK_SECONDS)
        pulse.show(Phase.OTHER)
        return future.result()

    def close(self) -> None:
        """Lets the save under way end, also after an error. Does not wait for others forever."""
        if self._under_way:
            last: Future[Any] = self._under_way.judged or self._under_way.written
            wait([last], LEAVE_SECONDS)
        self._thread.shutdown(wait=False, cancel_futures=True)

    def check_last(self) -> None:
        """Raises RunFailed, on all ranks, if the model could not be saved at the end."""
        if self._unsaved:
            raise RunFailed(f"{self._unsaved}; the run has ended and its model is not saved")

    def advice(self) -> str:
        """What a run that diverged can go back to. The save under way must be settled."""
        if self._good:
            return f"the last good checkpoint is {self._good}"
        if resumed := self._config.resume:
            return f"or resume from a checkpoint before {resumed}, which may contain the cause"
        return "no checkpoint was written before; set train.checkpoint_every=N to write some"
