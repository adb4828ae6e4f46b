"""What becomes of a run's status in MLflow if its ranks do not end well."""

from pathlib import Path
from typing import Any

import pytest

from harness.config import Config
from harness.launch import training
from harness.launch.launch import Outcome
from harness.launch.training import launch_training
from harness.tracking.connection import connect
from harness.tracking.tracker import Tracker
from tests.stores import new_store


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
