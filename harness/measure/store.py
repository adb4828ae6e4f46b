"""Where the MLflow store is, and how it is reached without waiting for one that is not there."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from harness.config import Config
from harness.errors import UserError
from harness.measure.redaction import without_password
from harness.paths import expanded_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

Status = Literal["FINISHED", "FAILED", "KILLED"]

REQUEST_SECONDS = 4
"""How long one request may take: an unreachable server is known for one soon enough."""
SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql", "databricks")

log = logging.getLogger(__name__)


def store_uri(config: Config) -> str:
    """The MLflow store of a run; a SQLite file is given by its absolute path."""
    if urlsplit(config.tracking.uri or "").password:
        raise UserError(
            f"tracking.uri={without_password(str(config.tracking.uri))} holds a password, which "
            f"would lie in the run's record; keep it in ~/.mlflow/credentials instead"
        )
    uri = config.tracking.uri or _environments_uri() or "sqlite:///mlflow.db"
    scheme = urlsplit(uri).scheme
    if scheme.partition("+")[0] not in SCHEMES:
        raise UserError(
            f"tracking.uri={uri} names no store that MLflow keeps runs in; give "
            f"sqlite:///FILE.db or http://HOST:PORT"
        )
    if file := sqlite_file(uri):
        return f"{scheme}:///{file}"
    return uri


def _environments_uri() -> str | None:
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    try:
        return expanded_uri(uri) if uri else None
    except ValueError as error:
        raise UserError(f"MLFLOW_TRACKING_URI={uri} does not fit: {error}") from error


def sqlite_file(uri: str) -> Path | None:
    """The absolute path of the file behind `uri`, where that is SQLite."""
    scheme, _, path = uri.partition(":///")
    return Path(path).absolute() if scheme.startswith("sqlite") else None


def connect(uri: str) -> "MlflowClient":
    """A client of the store that gives up after seconds; the first on a SQLite file makes it.

    MLflow is imported here, because that takes seconds and most ranks never need it.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(REQUEST_SECONDS))
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    for chatty in ("mlflow", "alembic"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    return MlflowClient(uri)


def check_store(config: Config) -> None:
    """Asks the store for an answer, for a few seconds at most. Raises UserError without one.

    Makes nothing: a SQLite file that is not there yet is made by the first run that starts.
    """
    uri = store_uri(config)
    file = sqlite_file(uri)
    if file and not file.exists():
        _require_writable(file)
    else:
        open_store(uri)


def open_store(uri: str) -> "MlflowClient":
    """A client of a store that answers. Raises UserError for one that does not."""
    if file := sqlite_file(uri):
        _require_writable(file)
    try:
        client = connect(uri)
        client.search_experiments(max_results=1)
    except Exception as error:
        raise UserError(
            f"the MLflow store {without_password(uri)} does not answer ({in_short(error)}); "
            f"start it, set tracking.uri to another, or tracking.enabled=false"
        ) from error
    return client


@contextmanager
def still_answering(uri: str) -> Iterator[None]:
    """Raises UserError where the store, which has answered, refuses or goes away in the block."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:
        raise UserError(
            f"the MLflow store {without_password(uri)} does not give what was asked "
            f"({in_short(error)})"
        ) from error


def _require_writable(file: Path) -> None:
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise UserError(
            f"cannot write the MLflow store {file}; create its folder, or set tracking.uri"
        )


def in_short(error: Exception) -> str:
    """What MLflow's page of text comes down to."""
    text = " ".join(str(error).split())
    for sign, short in (
        ("Connection refused", "connection refused"),
        ("NameResolutionError", "unknown host name"),
        ("imed out", "timed out"),
        ("No route to host", "no route to host"),
    ):
        if sign in text:
            return short
    return text if len(text) <= 160 else f"{text[:160]}..."


def open_experiment(client: "MlflowClient", uri: str, name: str) -> str:
    """The id of the experiment of that name, made where there is none."""
    found = client.get_experiment_by_name(name)
    if found is None:
        file = sqlite_file(uri)
        # MLflow's default would be a folder of whatever working directory made the file.
        place = (file.parent / "mlartifacts").as_uri() if file else None
        try:
            return client.create_experiment(name, artifact_location=place)
        except Exception:
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise UserError(
            f"the MLflow experiment {name!r} was deleted; choose another tracking.experiment or "
            f"run: mlflow experiments restore --experiment-id {found.experiment_id}"
        )
    return str(found.experiment_id)


def set_status(uri: str, run_id: str, status: Status) -> None:
    """Says how a run ended whose own processes could not; only warns where that fails."""
    try:
        connect(uri).set_terminated(run_id, status)
    except Exception as error:
        log.warning("cannot mark run %s as %s: %s", run_id, status, in_short(error))
