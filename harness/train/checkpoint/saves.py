"""When a run saves its model, and what happens if a save fails."""

from collections.abc import Sequence
from pathlib import Path

from harness.config import TrainConfig
from harness.errors import RunFailed
from harness.exchange.carried import Strip
from harness.tracking.run_folder import RunFolder
from harness.train.checkpoint.checkpoint import Checkpoint
from harness.train.checkpoint.meta import Meta
from harness.train.ledger import Journal


class Saves:
    """The saves of one run, in its folder `checkpoints/<windows>`."""

    def __init__(
        self, config: TrainConfig, windows: int, folder: Path, checkpoint: Checkpoint
    ) -> None:
        self._config = config
        self._windows = windows
        self._folder = folder
        self._checkpoint = checkpoint
        self._saved: int | None = None
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
        folder = self._folder_of(meta.window)
        problem = self._checkpoint.save(folder, meta, carried)
        if not problem:
            self._saved = meta.window
            return
        line = f"the checkpoint {folder} cannot be written ({problem})"
        if meta.window == self._windows:
            self._unsaved = line
        else:
            line += "; training continues without it"
        journal.warn("checkpoint", f"{line}; free space, or make the folder writable")

    def rewrite(self, meta: Meta, journal: Journal) -> None:
        """Rewrites the metadata of the last save."""
        if self._saved != meta.window:
            return
        if problem := self._checkpoint.rewrite_meta(self._folder_of(meta.window), meta):
            journal.warn(
                "checkpoint",
                f"{self._folder_of(meta.window)} was saved without its evaluation ({problem})",
            )

    def check_last(self) -> None:
        """Raises RunFailed, on all ranks, if the model could not be saved at the end."""
        if self._unsaved:
            raise RunFailed(f"{self._unsaved}; the run has ended and its model is not saved")

    def _folder_of(self, window: int) -> Path:
        return RunFolder(self._folder).checkpoint(window)
