"""The address of a run's MLflow store, and the file behind it if it is SQLite."""

import os
from pathlib import Path
from urllib.parse import quote, unquote

from harness.config import TrackingConfig
from harness.errors import UserError
from harness.measure.redaction import holds_secret, masked
from harness.paths import expanded

VARIABLE = "MLFLOW_TRACKING_URI"
DEFAULT = "sqlite:///mlflow.db"
SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql", "databricks")
QUOTED_DRIVER = "sqlite+pysqlite"
"""Scheme for paths that must be quoted: for a `sqlite` address, MLflow would also make a folder of
the quoted path, `a%3Fb` beside `a?b`."""


def store_uri(tracking: TrackingConfig) -> str:
    """The address of the MLflow store, with the absolute path of a SQLite file.

    Raises UserError for an address that is not a store's, or that holds a password in the config.
    """
    own = tracking.uri
    if own and holds_secret(own):
        raise UserError(
            f"tracking.uri={masked(own)} contains a user, password or token, which would be kept "
            f"in the run's record; give the whole address as {VARIABLE}, or keep them in "
            f"~/.mlflow/credentials"
        )
    uri = own or os.environ.get(VARIABLE) or DEFAULT
    key = "tracking.uri" if own else VARIABLE
    scheme = uri.partition("://")[0]
    if uri != "databricks" and scheme.partition("+")[0] not in SCHEMES:
        raise UserError(
            f"{key}={masked(uri)} is not a store in which MLflow keeps runs; give "
            f"sqlite:///FILE.db or http://HOST:PORT"
        )
    if not scheme.startswith("sqlite"):
        return uri
    file = sqlite_file(uri)
    if file is None or os.path.isdir(file):
        found = "no file" if file is None else f"the folder {file}"
        raise UserError(f"{key}={uri} names {found}; give sqlite:///FILE.db")
    return sqlite_uri(file, uri.partition("?")[2])


def key_of(uri: str) -> str:
    """The setting that this store's address comes from: the variable, or tracking.uri."""
    given = os.environ.get(VARIABLE)
    if given and (uri == given or sqlite_file(uri) == sqlite_file(given) is not None):
        return VARIABLE
    return "tracking.uri"


def sqlite_file(uri: str) -> Path | None:
    """The absolute path of the file behind `uri`, unquoted; None if it is not a SQLite file."""
    scheme, _, path = uri.partition(":///")
    path = unquote(path.partition("?")[0])
    if not scheme.startswith("sqlite") or path in ("", ":memory:"):
        return None
    try:
        return Path(expanded(path)).absolute()
    except ValueError as error:
        raise UserError(f"the store {uri} does not fit: {error}") from error


def sqlite_uri(file: Path, query: str = "") -> str:
    """The address of a SQLite file, quoted if its path holds %, ? or #."""
    path = quote(str(file), safe="/ ") if {"%", "?", "#"} & set(str(file)) else str(file)
    scheme = "sqlite" if path == str(file) else QUOTED_DRIVER
    return f"{scheme}:///{path}{'?' if query else ''}{query}"
