"""A run's artifacts in MLflow, as files on this machine."""

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import url2pathname

from harness.errors import UserError
from harness.tracking.failure import FAILURES_FILE
from harness.tracking.opening import FOLDER_TAG
from harness.tracking.prediction import PREDICTIONS_FILE
from harness.tracking.run_folder import RECORD, SUMMARY, RunFolder

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

ARTIFACTS = "mlartifacts"
"""Folder with the artifacts of a SQLite store, next to its file."""
WANTED = {*RECORD, PREDICTIONS_FILE, FAILURES_FILE}
"""Artifacts that are downloaded if they are not on this machine."""


def folder_of(client: "MlflowClient", run: "Run", store: Path | None) -> RunFolder:
    """The folder of a training's artifacts.

    If they lack the summary, but the folder in which the run was trained is on this machine and has
    it, that folder.
    """
    artifacts = RunFolder(artifacts_of(client, run, store))
    if FOLDER_TAG not in run.data.tags or artifacts.has(SUMMARY):
        return artifacts
    own = RunFolder(Path(run.data.tags[FOLDER_TAG]))
    return own if own.has(SUMMARY) and own.mlflow_run_id == run.info.run_id else artifacts


def artifacts_of(client: "MlflowClient", run: "Run", store: Path | None) -> Path:
    """The folder of the run's artifacts on this machine, downloaded if they are elsewhere."""
    parts = urlsplit(run.info.artifact_uri)
    if parts.scheme in ("file", ""):
        given = Path(url2pathname(parts.path))
        # Prefer artifacts next to the store: a store that was moved or cloned has old paths.
        beside = (store or given).parent / ARTIFACTS / run.info.run_id / "artifacts"
        if store is not None and os.path.exists(beside):
            return beside
        if os.path.exists(given):
            return given
    place = Path(tempfile.gettempdir()) / "harness-artifacts" / run.info.run_id
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_ours(place, error) from error
    names = {each.path for each in client.list_artifacts(run.info.run_id)}
    for name in names & WANTED:
        try:
            client.download_artifacts(run.info.run_id, name, str(place))
        except PermissionError as error:
            raise _not_ours(place, error) from error
    return place


def _not_ours(place: Path, error: OSError) -> UserError:
    return UserError(
        f"cannot keep artifacts in {place}: {error.strerror}; set TMPDIR to a folder of your own"
    )
