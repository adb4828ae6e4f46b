"""Reads a study back from MLflow: its runs, what each came to, and its metrics over time.

A run keeps its config, its summary and all its metrics as artifacts, so that a study of many long
runs is a few files to read, not thousands of requests.
"""

import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pandas as pd
from pydantic_core import from_json

from harness.config import Config, load_resolved
from harness.errors import UserError
from harness.measure.redaction import without_password
from harness.measure.store import open_store, sqlite_file
from harness.measure.summary import FILE_NAME, RunSummary
from harness.measure.tracking import CONFIG_FILE, ENVIRONMENT_FILE, METRICS_FILE
from harness.study import prediction
from harness.study.prediction import Prediction, read_predictions
from harness.study.results import Results, Variant

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

ARTIFACTS = "mlartifacts"
"""Folder of a SQLite store's artifacts, beside its file."""
PAGE = 1000
"""Runs in one request."""


@dataclass(frozen=True)
class RecordedRun:
    """One training as MLflow keeps it."""

    run_id: str
    config: Config
    status: str
    """FINISHED, FAILED, KILLED or RUNNING."""
    summary: RunSummary | None
    """None where the run did not end well."""
    folder: Path
    """Its artifacts."""

    @property
    def name(self) -> str:
        """Its variant's."""
        return self.config.name

    @property
    def seed(self) -> int:
        return self.config.seed

    @property
    def environment(self) -> dict[str, Any]:
        """What it noted of machine and versions; empty where it noted nothing."""
        file = self.folder / ENVIRONMENT_FILE
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}

    @cached_property
    def _points(self) -> list[dict[str, Any]]:
        file = self.folder / METRICS_FILE
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        # Four times as fast as json's: a study may have 100 MB.
        return [from_json(line) for line in lines]

    def metric(self, name: str) -> "pd.Series[float]":
        """One column of the history where it was logged, without the making of the others."""
        found = {p["step"]: p["metrics"][name] for p in self._points if name in p["metrics"]}
        return pd.Series(found, dtype=float).sort_index()

    @cached_property
    def history(self) -> pd.DataFrame:
        """A row per logged window, in order: the metrics by their MLflow names, and `time`, seconds
        since 1970. NaN where a metric was not logged then. The bars of the summary are left out."""
        rows: dict[int, dict[str, float]] = {}
        for point in self._points:
            kept = {k: v for k, v in point["metrics"].items() if not k.startswith("summary/")}
            if kept:
                rows.setdefault(point["step"], {"time": point["time"]}).update(kept)
        windows = sorted(rows)
        names = dict.fromkeys(name for window in windows for name in rows[window])
        return pd.DataFrame(
            {name: [rows[window].get(name, math.nan) for window in windows] for name in names},
            index=pd.Index(windows, name="window"),
        )


@dataclass(frozen=True)
class Study:
    """All runs of one study, oldest first."""

    name: str
    uri: str
    experiment: str
    """MLflow experiment they lie in."""
    runs: tuple[RecordedRun, ...]
    predictions: tuple[Prediction, ...] = ()
    """Logged with it before it ran, the latest."""

    def __getitem__(self, variant: str) -> tuple[RecordedRun, ...]:
        return tuple(run for run in self.runs if run.name == variant)

    @property
    def variants(self) -> tuple[Variant, ...]:
        """In the order they first ran."""
        names = dict.fromkeys(run.name for run in self.runs)
        return tuple(_variant(self[name]) for name in names)

    @property
    def results(self) -> Results:
        """What a comparison is made from."""
        environments = tuple(each for run in self.runs if (each := run.environment))
        return Results(self.name, self.variants, environments, self.predictions)


def _variant(runs: Sequence[RecordedRun]) -> Variant:
    by_seed = sorted(runs, key=lambda run: run.seed)
    summaries = tuple(run.summary for run in by_seed if run.summary is not None)
    failures = tuple(f"{run.status}" for run in by_seed if run.summary is None)
    return Variant(runs[0].config, summaries, failures)


def read_study(uri: str, name: str, experiment: str | None = None) -> Study:
    """The study of that name in the store; of its runs with the same variant and seed, the latest.

    Raises UserError for a store that does not answer, a name it does not know, or one that stands
    in several experiments of which none is given.
    """
    file = sqlite_file(uri)
    if file is not None and not file.exists():
        raise UserError(f"there is no MLflow store {file}; give another --uri")
    client = open_store(uri)
    experiments = {each.experiment_id: each.name for each in client.search_experiments()}
    if experiment is not None:
        experiments = {key: value for key, value in experiments.items() if value == experiment}
    found = list(_search(client, list(experiments), f"tags.study = '{name}'"))
    predicted = [run for run in found if run.data.tags.get("variant") == prediction.TAG]
    found = [run for run in found if "seed" in run.data.tags]
    if not found:
        tags = [run.data.tags for run in _search(client, list(experiments), "")]
        known = sorted({each["study"] for each in tags if each.get("study")})
        told = f"it knows {', '.join(known[:8])}" if known else "it knows none"
        raise UserError(f"no study {name!r} in {without_password(uri)}; {told}")
    places = {experiments[run.info.experiment_id] for run in found}
    if len(places) > 1:
        raise UserError(
            f"the study {name!r} stands in the experiments {', '.join(sorted(places))}; name one "
            f"with --experiment"
        )
    latest = {(run.data.tags["variant"], run.data.tags["seed"]): run for run in found}
    runs = tuple(_recorded(client, run, file) for run in latest.values())
    predictions = _predictions(client, predicted[-1], file) if predicted else ()
    return Study(name, uri, places.pop(), runs, predictions)


def _predictions(client: "MlflowClient", run: "Run", store: Path | None) -> tuple[Prediction, ...]:
    file = _artifacts(client, run, store) / prediction.FILE_NAME
    return read_predictions(file) if file.exists() else ()


def _search(client: "MlflowClient", experiments: list[str], query: str) -> Iterator["Run"]:
    """Oldest first."""
    token: str | None = None
    while experiments:
        page = client.search_runs(
            experiments, query, max_results=PAGE, order_by=["start_time ASC"], page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return


def _recorded(client: "MlflowClient", run: "Run", store: Path | None) -> RecordedRun:
    folder = _artifacts(client, run, store)
    summary = RunSummary.read(folder) if (folder / FILE_NAME).exists() else None
    return RecordedRun(
        run.info.run_id, load_resolved(folder / CONFIG_FILE), run.info.status, summary, folder
    )


def _artifacts(client: "MlflowClient", run: "Run", store: Path | None) -> Path:
    """The run's artifacts on this machine, fetched where they lie elsewhere."""
    parts = urlsplit(run.info.artifact_uri)
    if parts.scheme in ("file", ""):
        given = Path(url2pathname(parts.path))
        # A store that was moved, or cloned, has its artifacts beside it.
        beside = (store or given).parent / ARTIFACTS / run.info.run_id / "artifacts"
        if store is not None and beside.exists():
            return beside
        if given.exists():
            return given
    place = Path(tempfile.gettempdir()) / "harness-artifacts" / run.info.run_id
    place.mkdir(parents=True, exist_ok=True)
    names = {each.path for each in client.list_artifacts(run.info.run_id)}
    wanted = {CONFIG_FILE, ENVIRONMENT_FILE, FILE_NAME, METRICS_FILE, prediction.FILE_NAME}
    for name in names & wanted:
        client.download_artifacts(run.info.run_id, name, str(place))
    return place
