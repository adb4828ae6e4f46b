"""What becomes of a run's status in MLflow if its ranks do not end well."""

import os
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from harness.config import Config
from harness.launch import training
from harness.launch.launch import Outcome
from harness.launch.training import launch_training, train_command
from harness.signals import Noted, handled
from harness.tracking.connection import connect
from harness.tracking.tracker import Tracker
from tests.stores import new_store
from tests.tracking.test_only_one import held_by_another


@pytest.mark.parametrize(
    ("before", "code", "stopped", "after"),
    [
        (None, 1, False, "FAILED"),
        (None, 1, True, "KILLED"),
        (None, 2, False, "RUNNING"),
        ("FINISHED", 1, False, "FINISHED"),
        ("FINISHED", 2, False, "FINISHED"),
        ("KILLED", 3, True, "KILLED"),
    ],
)
def test_a_status_is_set_only_where_the_ranks_could_not(
    before: Any,
    code: int,
    stopped: bool,
    after: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The ranks of a mistaken second start end with exit code 2, and have not touched the run."""
    uri = new_store(tmp_path)
    own = {"uri": uri, "system_metrics_seconds": 0}
    config = Config.model_validate({"name": "t", "train": {"steps": 5}, "tracking": own})
    tracker = Tracker.start(config, tmp_path, {})
    if before:
        tracker.finish(before)
    ended = Outcome(code, "why", tmp_path / "log", stopped)
    monkeypatch.setattr(training, "launch", lambda *_, **__: ended)
    outcome = launch_training([], config, tmp_path, 1, None, tmp_path / "log")
    assert outcome == ended
    assert connect(uri).get_run(str(tracker.run_id)).info.status == after
    tracker.finish("FINISHED")


@pytest.mark.parametrize(
    ("goes_on", "trained", "held", "code", "after"),
    [
        (True, "before", False, 1, "FAILED"),
        (False, "meanwhile", False, 1, "FAILED"),
        (True, "never", False, 2, "RUNNING"),
        (True, "before", True, 1, "RUNNING"),
        (False, "before", False, 2, "RUNNING"),
    ],
)
def test_what_ranks_call_a_mistake_is_a_failure_once_windows_were_trained(
    goes_on: bool,
    trained: str,
    held: bool,
    code: int,
    after: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A disk that did not answer for a moment must not end a night's training. In the last case
    the run in the folder is another one; in the one before another process trains it."""
    uri = new_store(tmp_path)
    own = {"uri": uri, "system_metrics_seconds": 0}
    config = Config.model_validate({"name": "t", "train": {"steps": 5}, "tracking": own})
    tracker = Tracker.start(config, tmp_path, {})

    def ends(*_: object, **__: object) -> Outcome:
        if trained == "meanwhile":
            tracker.log(1, {"train/loss": 1.0})
        return Outcome(2, "harness: cannot read", tmp_path / "log", stopped=False)

    if trained == "before":
        tracker.log(1, {"train/loss": 1.0})
    monkeypatch.setattr(training, "launch", ends)
    command = train_command(tmp_path / "x.yaml", (), tmp_path, goes_on)
    with held_by_another(tmp_path) if held else nullcontext():
        outcome = launch_training(command, config, tmp_path, 1, None, tmp_path / "log")
    assert (outcome.exit_code, outcome.reason) == (code, "harness: cannot read")
    assert connect(uri).get_run(str(tracker.run_id)).info.status == after
    tracker.finish("FINISHED")


def test_a_signal_while_the_status_is_set_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = new_store(tmp_path)
    own = {"uri": uri, "system_metrics_seconds": 0}
    config = Config.model_validate({"name": "t", "train": {"steps": 5}, "tracking": own})
    tracker = Tracker.start(config, tmp_path, {})
    set_status = training.set_status

    def interrupted(*given: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        set_status(*given)

    failed = Outcome(1, "why", tmp_path / "log", stopped=False)
    monkeypatch.setattr(training, "launch", lambda *_, **__: failed)
    monkeypatch.setattr(training, "set_status", interrupted)
    with handled([signal.SIGTERM], Noted().arrives):  # otherwise it might end this process
        outcome = launch_training([], config, tmp_path, 1, None, tmp_path / "log")
    assert outcome.stopped
    assert connect(uri).get_run(str(tracker.run_id)).info.status == "FAILED"
    tracker.finish("FINISHED")
