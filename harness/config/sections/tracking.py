"""Section `tracking`: where a run is recorded."""

from typing import Annotated

from pydantic import Field

from harness.config.section import Label, PathText, Section
from harness.config.sections.values import Address, PerHost


class TrackingConfig(Section):
    experiment: Label = "harness"
    """MLflow experiment."""
    uri: Annotated[Address | None, PerHost()] = None
    """MLflow store; null: MLFLOW_TRACKING_URI, else the SQLite file mlflow.db in this folder."""
    enabled: bool = True
    """Record the run in MLflow; false writes metrics to the run's folder only."""
    study: Label | None = None
    """Tag shared by the runs that are compared with each other."""
    system_metrics_seconds: float = Field(default=10.0, ge=0, le=10**6)
    """Seconds between two samples of each node's system metrics; 0 takes none."""
    folder: Annotated[PathText, PerHost()] = "runs"
    """Folder in which each run gets its own, with config, metrics, summary and checkpoints."""
