"""The checkpoints in a folder, which may be a run's, or one of them itself."""

from pathlib import Path

from harness.errors import UserError
from harness.train.checkpoint.choice import holder, names_in, newest_first


def shelf(folder: Path) -> list[Path]:
    """All of them, complete or not, the newest first. Raises UserError if there are none."""
    found = [holder(folder) / name for name in newest_first(set(names_in(folder)))]
    if not found:
        raise UserError(
            f"{folder} is no checkpoint and holds none; give the folder of a run, or one of its "
            f"checkpoints/<window>"
        )
    return found
