"""Starts one training on all ranks; if they could not say in MLflow that it failed, does so."""

import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from harness.config import Config
from harness.launch.launch import Outcome, launch
from harness.launch.warned import WARNINGS
from harness.signals import Noted, handled
from harness.tracking.address import store_uri
from harness.tracking.connection import Status, set_status
from harness.tracking.only_one import is_trained
from harness.tracking.run_folder import RunFolder

CONTINUE = "--continue"


def train_command(
    experiment: Path, overrides: Sequence[str], folder: Path, goes_on: bool = False
) -> list[str]:
    """Program and arguments of each rank; `goes_on`: it may hold the run, to be continued."""
    program = [sys.executable, "-m", "harness", "train", str(experiment)]
    return [*program, *overrides, "--folder", str(folder), *([CONTINUE] if goes_on else [])]


def launch_training(
    command: Sequence[str], config: Config, folder: Path, ranks: int, hosts: str | None, log: Path
) -> Outcome:
    """Runs the `train_command` of this config and folder on `ranks` ranks.

    What ranks call a mistake of the user is a failure of a run that has trained windows.
    """
    own = RunFolder(folder)
    before = own.has_trained
    outcome = launch(command, ranks, hosts, log, grace_seconds=config.launch.grace_seconds)
    # Its settings were good once: a disk was full or did not answer, or a host that is gone still
    # holds a lock. Unless it goes on, a run that was in the folder before is another one.
    is_own = CONTINUE in command or not before
    if outcome.exit_code == 2 and is_own and (before or own.has_trained):
        outcome = replace(outcome, exit_code=1)
        if is_trained(folder):  # by another process, which is why ours had to end
            return outcome
    run_id = own.mlflow_run_id if outcome.exit_code not in (0, 2) else None
    late = Noted()
    if run_id is not None:
        status: Status = "KILLED" if outcome.stopped else "FAILED"
        with handled([signal.SIGINT, *WARNINGS], late.arrives):
            set_status(store_uri(config.tracking), run_id, status)
    return outcome.after(late)
