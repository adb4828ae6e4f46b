"""Records a comparison in MLflow, as a separate run next to those that it compares."""

import shlex
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from harness.config import TrackingConfig
from harness.measure.redaction import masked
from harness.tracking import failure
from harness.tracking.address import store_uri
from harness.tracking.comparison_files import ComparisonFiles
from harness.tracking.connection import connect, open_experiment, open_store, still_answering
from harness.tracking.prediction import PREDICTIONS_FILE, TAG, Prediction, write_predictions
from harness.tracking.ui import command_of, page_of

if TYPE_CHECKING:
    from mlflow import MlflowClient


def record(
    tracking: TrackingConfig,
    study: str,
    frame: pd.DataFrame,
    files: ComparisonFiles,
    failures: int = 0,
) -> str:
    """Logs all files of the comparison; returns the id of the experiment that holds it.

    `failures`: the number of failures in the files, for whoever reopens the study.
    """
    from mlflow.entities import Metric, RunTag

    uri = store_uri(tracking)
    client = connect(uri)
    experiment_id = open_experiment(client, uri, tracking.experiment)
    run = client.create_run(experiment_id, run_name=f"comparison {study}")
    run_id = run.info.run_id
    shown = files.table.read_text(encoding="utf-8")
    tags = {"study": study, "variant": "comparison", "mlflow.note.content": shown}
    if failures:
        tags[failure.TAG] = str(failures)
    # In the comparison's run only: these values are of all runs of a variant, not of one run.
    numbers = {
        f"comparison/{column}/{variant}": float(value)
        for column in ("speedup", "speedup_to_target")
        for variant, value in frame[column].dropna().items()
    }
    with _ended(client, run_id):
        client.log_batch(
            run_id,
            metrics=[Metric(name, each, run.info.start_time, 0) for name, each in numbers.items()],
            tags=[RunTag(name, value) for name, value in tags.items()],
        )
        for path in files.all:
            client.log_artifact(run_id, str(path))
    return experiment_id


def record_predictions(
    tracking: TrackingConfig, study: str, predictions: Sequence[Prediction]
) -> str:
    """Logs predictions as a separate run, next to the study's runs that are to come.

    Returns the id of the experiment that holds it.
    """
    from mlflow.entities import RunTag

    uri = store_uri(tracking)
    client = open_store(uri)
    with still_answering(uri), tempfile.TemporaryDirectory() as folder:
        experiment_id = open_experiment(client, uri, tracking.experiment)
        run_id = client.create_run(experiment_id, run_name=f"prediction {study}").info.run_id
        tags = {"study": study, "variant": TAG}
        path = Path(folder) / PREDICTIONS_FILE
        write_predictions(predictions, path)
        with _ended(client, run_id):
            client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])
            client.log_artifact(run_id, str(path))
    return experiment_id


@contextmanager
def _ended(client: "MlflowClient", run_id: str) -> Iterator[None]:
    """Sets the run's final status at the end of the block, in which it is filled."""
    try:
        yield
    except BaseException:
        with suppress(Exception):  # the error that is raised is the cause
            client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id)


def way_to_see(tracking: TrackingConfig, experiment_id: str, study: str) -> str:
    """A line that tells the user how to see the comparison in MLflow's pages."""
    uri = store_uri(tracking)
    if uri.startswith("http"):
        return f"see it at {masked(uri).rstrip('/')}/{page_of(experiment_id, study)}"
    return f"see it with: {shlex.join(command_of(uri, study))}"
