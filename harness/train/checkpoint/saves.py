"""When a run saves its model, and what happens if a save fails."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.config import TrainConfig
from harness.errors import RunFailed
from harness.exchange.carried import Strip
from harness.parallel.world import World
from harness.tracking.folders import META
from harness.tracking.run_folder import RunFolder
from harness.train.checkpoint.checkpoint import Checkpoint
from harness.train.checkpoint.files import retire, write_text
from harness.train.checkpoint.meta import Meta
from harness.train.checkpoint.writing import Unwritten, Writer, reason
from harness.train.ledger import Journal


class Saves:
    """The saves of one run, in its folder `checkpoints/<windows>`."""

    def __init__(
        self, config: TrainConfig, windows: int, folder: Path, checkpoint: Checkpoint, world: World
    ) -> None:
        self._config = config
        self._windows = windows
        self._folder = folder
        self._checkpoint = checkpoint
        self._world = world
        self._writer = Writer(self._gather, world.is_first)
        self._saved: Meta | None = None
        self._kept: list[Path] = []
        """Good checkpoints of this run, the oldest first."""
        self._unsaved = ""

    @property
    def last(self) -> Path | None:
        """The last checkpoint that this run has written; None if there is none."""
        return None if self._saved is None else self._folder_of(self._saved)

    def due(self, ended: int) -> bool:
        """Whether the model is saved after `ended` windows."""
        every = self._config.checkpoint_every
        regular = bool(every) and ended % every == 0
        return regular or (self._config.save and ended == self._windows)

    def save(self, meta: Meta, carried: Sequence[Strip], journal: Journal) -> None:
        """Saves the model. A failed save prints a warning and training continues. Collective over
        the world."""
        folder = self._folder_of(meta)
        try:
            self._saved = self._writer.write(folder, self._checkpoint.copies(carried), meta)
        except Unwritten as error:
            line = f"the checkpoint {folder} cannot be written ({error})"
            if meta.window == self._windows:
                self._unsaved = line
            else:
                line += "; training continues without it"
            journal.warn("checkpoint", f"{line}; free space, or make the folder writable")

    def judged(self, meta: Meta, good: bool, journal: Journal) -> None:
        """Adds to the save of this window what was measured after it. If it is `good`, those before
        it are removed that are not to be kept."""
        if self._saved is None or self._saved.window != meta.window or not self._world.is_first:
            return
        folder, files = self._folder_of(meta), self._saved.files
        try:
            if meta.progress != self._saved.progress:
                write_text(folder / META, meta.model_copy(update={"files": files}).to_json())
        except OSError as error:
            line = f"{folder} was saved without its evaluation ({reason(error)})"
            journal.warn("checkpoint", line)
        if good:
            self._kept.append(folder)
            self._remove_old(journal)

    def _remove_old(self, journal: Journal) -> None:
        keep = self._config.keep_checkpoints
        while keep and len(self._kept) > keep:
            try:
                retire(self._kept[0])
            except OSError as error:  # it is tried again after the next save
                journal.warn("old_checkpoint", f"{self._kept[0]} stays ({reason(error)})")
                return
            del self._kept[0]

    def check_last(self) -> None:
        """Raises RunFailed, on all ranks, if the model could not be saved at the end."""
        if self._unsaved:
            raise RunFailed(f"{self._unsaved}; the run has ended and its model is not saved")

    def _folder_of(self, meta: Meta) -> Path:
        return RunFolder(self._folder).checkpoint(meta.window)

    def _gather(self, value: Any) -> list[Any]:
        return self._world.gather_objects(value, "checkpoint")
