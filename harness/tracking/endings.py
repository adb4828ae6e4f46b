"""How a recorded run without a summary ended, even if nothing marked it as ended."""

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from harness.tracking.opening import FOLDER_TAG
from harness.tracking.signs_of_life import PROCESS_TAG, TAG, Process, last_sign

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

UNENDED = ("RUNNING", "SCHEDULED")
"""MLflow's status of runs that nothing has marked as ended."""
LOGGED_ALONG = ("train/loss", "system/node_0/cpu_utilization_percentage")
"""Metrics that a run logs from its first window to its last."""


def ending_of(client: "MlflowClient", run: "Run") -> str | None:
    """Why the run has no summary; None if it is still running."""
    if run.info.status == "FINISHED":
        return f"FINISHED, but its summary did not reach the store{_kept(run.data.tags)}"
    if run.info.status not in UNENDED:
        return str(run.info.status)
    sign = last_sign(run.data.tags, _last_metric(client, run), time.time())
    if sign is None:
        return None
    at = datetime.fromtimestamp(sign, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"ended silently, last sign of life at {at}"


def _last_metric(client: "MlflowClient", run: "Run") -> float:
    """When the run's last metric was taken, else when it was made, in seconds since 1970."""
    last = run.info.start_time
    # With a heartbeat, no history has to be read.
    for name in () if TAG in run.data.tags else LOGGED_ALONG:
        if name in run.data.metrics:
            history = client.get_metric_history(run.info.run_id, name)
            last = max(last, *(point.timestamp for point in history))
    return last / 1e3


def _kept(tags: dict[str, str]) -> str:
    """Where the summary is kept, if the tags have it."""
    process = Process.parse(tags.get(PROCESS_TAG, ""))
    if process is None or FOLDER_TAG not in tags:
        return ""
    return f": it is kept in {tags[FOLDER_TAG]} on {process.host}"
