"""Opens an MLflow store, without waiting long for one that does not answer."""

import logging
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from harness.config import TrackingConfig
from harness.errors import UserError
from harness.locking import lock
from harness.measure.redaction import masked
from harness.tracking.address import key_of, sqlite_file, sqlite_uri, store_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

Status = Literal["FINISHED", "FAILED", "KILLED"]

REQUEST_SECONDS = 4
"""Timeout of a request, after which a server counts as unreachable."""
LOCKED_SECONDS = 10.0
"""Time that another process may hold a SQLite file before its store counts as unreachable."""
MAKING_SECONDS = 60.0
"""Time that another process may take to make the store's tables, which takes seconds."""
ENGINE_ATTEMPTS = 2
"""Attempts of MLflow to open a database; its default of ten takes minutes even if waiting cannot
help."""
AWAY = {
    "Connection refused": "connection refused",
    "NameResolutionError": "unknown host name",
    "imed out": "timed out",
    "No route to host": "no route to host",
    "Connection aborted": "connection broken",
    "Connection reset": "connection broken",
}
"""Text in the errors of a store that cannot be reached -> the error in short."""
DENIED = {
    "Invalid Host header": "allow this name with `mlflow server --allowed-hosts`",
    "error code 401": "correct its user and password",
    "error code 403": "correct its user and password, or their rights",
}
"""Text in the errors of a store that answers but refuses -> what to do."""
DATABASES = ("postgresql", "mysql", "mssql")
"""Schemes of stores that hold no files."""
SCHEMA = ("database schema", "Can't locate revision")
LOST_RACE = ("already exists", "duplicate column name", "UNIQUE constraint", "database is locked")
"""Text in the errors of a process that makes a store's tables at the same time as another."""

log = logging.getLogger(__name__)


def connect(uri: str) -> "MlflowClient":
    """A client of the store that gives up after seconds; makes a SQLite file that is missing.

    MLflow is imported here because that takes seconds and most ranks never need it.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(REQUEST_SECONDS))
    os.environ.setdefault("PGCONNECT_TIMEOUT", str(REQUEST_SECONDS))
    # MLflow would print the store's address at the end of a run, including a user and password.
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    from mlflow import MlflowClient

    if "://" in uri and not uri.startswith(("http", "databricks")):
        from mlflow.store.db import utils

        utils.MAX_RETRY_COUNT = ENGINE_ATTEMPTS
    for chatty in ("mlflow", "alembic"):
        logging.getLogger(chatty).setLevel(logging.CRITICAL)
    return MlflowClient(uri)


def check_store(tracking: TrackingConfig) -> None:
    """Checks that the store answers, within a few seconds. Raises UserError if it does not.

    Makes nothing: a missing SQLite file is made by the first run that starts.
    """
    uri = store_uri(tracking)
    file = sqlite_file(uri)
    if file and not os.path.exists(file):
        _require_writable(file)
    else:
        open_store(uri)


def open_store(uri: str, reads: bool = False) -> "MlflowClient":
    """A client of the store, which has answered. Raises UserError if it does not answer, or if it
    cannot be written, unless the client only `reads`.

    If several processes open a SQLite file that is not a store yet, one of them makes its tables.
    """
    file = sqlite_file(uri)
    if file and not reads:
        _require_writable(file)
    try:
        if file is None:
            return _answering(uri)
        with _alone_where_made(file):
            if not reads and os.path.exists(file):
                _require_unlocked(file)
            return _answering(uri)
    except Exception as error:
        raise _unopened(uri, error) from error


@contextmanager
def still_answering(uri: str, does: str = "does not complete a request") -> Iterator[None]:
    """Raises UserError if the store, which has answered before, refuses or fails in the block.

    `does`: the verb phrase of the message.
    """
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:
        raise UserError(f"the MLflow store {masked(uri)} {does} ({short_reason(error)})") from error


def short_reason(error: Exception) -> str:
    """MLflow's page of text as one short phrase, with secrets masked."""
    if isinstance(error, OSError) and error.strerror:
        return masked(f"{error.strerror}: {error.filename}" if error.filename else error.strerror)
    text = " ".join(masked(str(error)).split()).partition(" [SQL:")[0]
    for sign, short in AWAY.items():
        if sign in text:
            return short
    return text if len(text) <= 160 else f"{text[:160]}..."


def open_experiment(client: "MlflowClient", uri: str, name: str) -> str:
    """The id of the experiment of that name, which is made if it is missing."""
    found = client.get_experiment_by_name(name)
    if found is None:
        file = sqlite_file(uri)
        # MLflow's default would be a folder in the current working directory.
        place = (file.parent / "mlartifacts").as_uri() if file else None
        try:
            found = client.get_experiment(client.create_experiment(name, artifact_location=place))
        except Exception:
            # Another process may have made it in the meantime.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise UserError(
            f"the MLflow experiment {name!r} was deleted; choose another tracking.experiment or "
            f"run: mlflow experiments restore --experiment-id {found.experiment_id}"
        )
    if uri.startswith(DATABASES) and urlsplit(found.artifact_location).scheme in ("", "file"):
        log.warning(
            "the MLflow store %s keeps files, such as summaries, in %s of this machine, where "
            "other machines cannot read them; use a server (mlflow server), or an experiment that "
            "was made with an --artifact-location that all can reach",
            masked(uri),
            found.artifact_location,
        )
    return str(found.experiment_id)


def set_status(uri: str, run_id: str, status: Status) -> None:
    """Records how a run ended if its own processes have not done so; only warns if that fails."""
    try:
        client = connect(uri)
        if client.get_run(run_id).info.status == "RUNNING":
            client.set_terminated(run_id, status)
    except Exception as error:
        log.warning("cannot mark run %s as %s: %s", run_id, status, short_reason(error))


def _answering(uri: str) -> "MlflowClient":
    """A client of a store that answers; tries again while another process makes its tables.

    That process may not use our lock, as MLflow's own server does not.
    """
    end = time.monotonic() + LOCKED_SECONDS
    while True:
        try:
            client = connect(uri)
            client.search_experiments(max_results=1)
            return client
        except Exception as error:
            lost = any(sign in str(error) for sign in LOST_RACE)
            if not lost or time.monotonic() > end:
                raise
        time.sleep(0.5)


@contextmanager
def _alone_where_made(file: Path) -> Iterator[None]:
    """Holds a lock file next to a SQLite file, while that may lack tables.

    Raises sqlite3.Error or OSError for a file that cannot be a store, which MLflow would try to
    open for a minute.
    """
    beside = file.with_name(f".{file.name}.lock")
    with _locked(beside) if os.path.exists(beside) or not _has_tables(file) else nullcontext():
        yield


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the lock in the block, or begins it without after `MAKING_SECONDS`."""
    try:
        file = path.open("a")
    except OSError:  # another user's file: go on without the lock; `_answering` tries again
        yield
        return
    with file:
        lock(file, MAKING_SECONDS)
        yield


def _has_tables(file: Path) -> bool:
    """Whether MLflow has made its tables in this file, or has begun to."""
    if not os.path.exists(file) or not file.stat().st_size:
        return False
    with _sqlite(file) as base:
        found = base.execute("select count(*) from sqlite_master where name = 'alembic_version'")
        return bool(found.fetchone()[0])


def _require_unlocked(file: Path) -> None:
    """Raises sqlite3.Error if another process is writing; MLflow would wait 20 s in each step."""
    with _sqlite(file) as base:
        base.execute("begin immediate")
        base.rollback()


@contextmanager
def _sqlite(file: Path) -> Iterator[sqlite3.Connection]:
    address = f"{file.as_uri()}?mode=rw"
    with closing(sqlite3.connect(address, LOCKED_SECONDS, isolation_level=None, uri=True)) as base:
        yield base


def _unopened(uri: str, error: Exception) -> UserError:
    shown, short = masked(uri), short_reason(error)
    if any(sign in short for sign in SCHEMA):
        return UserError(
            f"the MLflow store {shown} was made by another version of MLflow ({short}); use that "
            f"version, or set {key_of(uri)} to another store"
        )
    for sign, advice in DENIED.items():
        if sign in str(error):
            return UserError(f"the MLflow store {shown} refuses access ({short}); {advice}")
    mend = "repair it" if sqlite_file(uri) else "start it"
    return UserError(
        f"the MLflow store {shown} does not answer ({short}); "
        f"{mend}, set {key_of(uri)} to another, or tracking.enabled=false"
    )


def _require_writable(file: Path) -> None:
    places = [file, file.parent] if os.path.exists(file) else [file.parent]
    if not all(os.access(place, os.W_OK) for place in places):
        raise UserError(
            f"cannot write the MLflow store {file}; create its folder or allow writing "
            f"there, or set {key_of(sqlite_uri(file))} to another"
        )
