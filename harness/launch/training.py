"""Starts one training on all ranks; if they could not say in MLflow that it failed, does so."""

import sys
from collections.abc import Sequence
from pathlib import Path

from harness.config import Config
from harness.launch.launch import Outcome, launch
from harness.tracking.address import store_uri
from harness.tracking.connection import Status, set_status
from harness.tracking.run_folder import RunFolder


def train_command(
    experiment: Path, overrides: Sequence[str], folder: Path, goes_on: bool = False
) -> list[str]:
    """Program and arguments of each rank; `goes_on`: it may hold the run, to be continued."""
    program = [sys.executable, "-m", "harness", "train", str(experiment)]
    return [*program, *overrides, "--folder", str(folder), *(["--continue"] if goes_on else [])]


def launch_training(
    command: Sequence[str], config: Config, folder: Path, ranks: int, hosts: str | None, log: Path
) -> Outcome:
    """Runs the `train_command` of this config and folder on `ranks` ranks."""
    grace = config.launch.grace_seconds
    outcome = launch(command, ranks, hosts, log, grace_seconds=grace)
    # A mistake is found before a run begins, so a run in the folder is another one, or had ended.
    run_id = RunFolder(folder).mlflow_run_id if outcome.exit_code not in (0, 2) else None
    if run_id is not None:
        status: Status = "KILLED" if outcome.stopped else "FAILED"
        set_status(store_uri(config.tracking), run_id, status)
    return outcome
