"""Whether the run in a folder is the one that is asked for, and whether it has ended."""

from pathlib import Path

from harness.config import AUTO, Config
from harness.errors import UserError
from harness.exchange.kinds import CHOSEN
from harness.measure.summary import RunSummary
from harness.tracking.run_folder import RunFolder

CHOSEN_BY_THE_RUN = ("exchange.pieces", "exchange.route")
"""Keys that a run may have filled in itself before it recorded its config."""
CHOSEN_WITH_THE_KIND = tuple(f"exchange.{key}" for key in (*CHOSEN, "kinds"))
"""The same for a run with `exchange.kind=auto`."""


def check_alike(config: Config, folder: Path) -> None:
    """Raises UserError if the run in the folder has other settings."""
    recorded = RunFolder(folder).config
    if recorded is None:
        return
    before, now = recorded.alike(), config.alike()
    chosen: tuple[str, ...] = CHOSEN_BY_THE_RUN
    if config.exchange.kind == AUTO:
        chosen += CHOSEN_WITH_THE_KIND
    for key, value in now.items():
        # How long ranks may take to end changes nothing of what they train.
        if not key.startswith("launch.") and key not in chosen and before.get(key) != value:
            raise UserError(
                f"the run in {folder} has {key}={before.get(key)}, and here it is {value}; "
                f"continue it with the same settings, or give another --folder"
            )


def ended(config: Config, folder: Path) -> RunSummary | None:
    """The summary of the run in the folder if nothing of it is left to do, which is then said.

    A run has something left if it diverged at its end, or could not save its last model. Raises
    UserError if the run has other settings.
    """
    own = RunFolder(folder)
    summary = own.summary
    if summary is None or summary.diverged:
        return None
    if config.train.save and summary.windows not in own.checkpoints():
        return None
    check_alike(config, folder)
    print(f"harness: the run in {folder} has ended, after {summary.windows} windows", flush=True)
    return summary
