"""The checkpoints in a folder, which may be a run's, or one of them itself."""

from pathlib import Path

from harness.errors import UserError
from harness.train.checkpoint.choice import holder, names_in, newest_first
from harness.train.checkpoint.files import PARTIAL
from harness.train.checkpoint.manifest import BadCheckpoint
from harness.train.checkpoint.meta import Meta, read_meta


def shelf(folder: Path) -> list[Path]:
    """All of them, complete or not, the newest first. Raises UserError if there are none."""
    found = [holder(folder) / name for name in newest_first(set(names_in(folder)))]
    if not found:
        raise UserError(
            f"{folder} is no checkpoint and holds none; give the folder of a run, or one of its "
            f"checkpoints/<window>"
        )
    return found


def described(checkpoint: Path) -> Meta:
    """The metadata of one of them. Raises BadCheckpoint."""
    if checkpoint.name.endswith(PARTIAL):
        raise BadCheckpoint("it is incomplete: its writing was interrupted, or goes on")
    return read_meta(checkpoint)
