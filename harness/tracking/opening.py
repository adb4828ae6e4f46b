"""Opens a run in MLflow with its tags and parameters; closes it again if that fails."""

import getpass
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config import Config
from harness.measure.redaction import masked
from harness.tracking import signs_of_life
from harness.tracking.address import store_uri
from harness.tracking.connection import open_experiment, open_store, still_answering
from harness.tracking.delivery import RunInStore
from harness.tracking.run_folder import RunFolder

if TYPE_CHECKING:
    from mlflow import MlflowClient

FOLDER_TAG = "folder"
"""Tag of a run: where its files are, on the host that its process tag names."""
REQUEST_PARAMS = 100
"""Most parameters that MLflow accepts in one request."""


def open_run(config: Config, folder: Path, environment: dict[str, Any]) -> RunInStore:
    """Makes a run in MLflow. Raises UserError if the store does not answer or refuses."""
    uri = store_uri(config.tracking)
    client = open_store(uri)
    with still_answering(uri, does="does not accept a run"):
        experiment_id = open_experiment(client, uri, config.tracking.experiment)
        # By a client and the run's id instead of MLflow's fluent functions, whose exit hook marks
        # even a crashed run as FINISHED.
        run = client.create_run(
            experiment_id,
            run_name=f"{config.name}-s{config.seed}",
            tags=_tags(config, folder, environment),
        )
        run_id = str(run.info.run_id)
        try:
            where = {"tracking_uri": masked(uri), "experiment_id": experiment_id}
            RunFolder(folder).write_mlflow(where | {"run_id": run_id})
            _log_params(client, run_id, config.flattened())
        except BaseException:
            with suppress(Exception):  # the user needs to know the first error
                client.set_terminated(run_id, "FAILED")
            raise
    return RunInStore(client, run_id, masked(uri))


def _tags(config: Config, folder: Path, environment: dict[str, Any]) -> dict[str, str]:
    tags = {
        "study": config.tracking.study or "",
        "variant": config.name,
        "seed": str(config.seed),
        FOLDER_TAG: str(folder.absolute()),
        **signs_of_life.tags(),
        "mlflow.user": _user(),
        "mlflow.source.name": "harness train",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": str(environment.get("git_commit") or ""),
    }
    return {name: value for name, value in tags.items() if value}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a uid without a name, as in containers
        return str(os.getuid())


def _log_params(client: "MlflowClient", run_id: str, params: dict[str, Any]) -> None:
    from mlflow.entities import Param

    entries = [Param(name, masked(str(value))) for name, value in params.items()]
    for first in range(0, len(entries), REQUEST_PARAMS):
        client.log_batch(run_id, params=entries[first : first + REQUEST_PARAMS])
