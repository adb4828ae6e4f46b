"""Reads a study from MLflow: its runs, the result of each, and its metrics over time.

Each run has its config, its summary and all its metrics as artifacts, so that a study of many long
runs takes a few files to read instead of thousands of requests.
"""

import difflib
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.config import Config
from harness.errors import UserError
from harness.measure.redaction import masked
from harness.measure.summary import DIVERGED_TAG
from harness.tracking.address import sqlite_file
from harness.tracking.artifacts import artifacts_of, folder_of
from harness.tracking.connection import open_store, still_answering
from harness.tracking.endings import UNENDED, ending_of
from harness.tracking.failure import FAILURES_FILE, Failure, divergence, read_failures
from harness.tracking.failure import TAG as FAILURES_TAG
from harness.tracking.prediction import PREDICTIONS_FILE, Prediction, read_predictions
from harness.tracking.prediction import TAG as PREDICTION_TAG
from harness.tracking.recorded import RecordedRun, environments_of, variants_of
from harness.tracking.results import Results, Variant
from harness.tracking.run_folder import RunFolder

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

PAGE = 1000
"""Runs per request."""
TRAIN_LOSS = "train/loss"
PLAIN = re.compile(r"[A-Za-z0-9_.:/+ -]+")
"""Names that can be written in a query: MLflow's language cannot escape all others."""


@dataclass(frozen=True)
class Study:
    """All runs of one study, oldest first."""

    name: str
    uri: str
    experiment: str
    """MLflow experiment that holds the runs."""
    runs: tuple[RecordedRun, ...]
    predictions: tuple[Prediction, ...] = ()
    """The latest predictions that were logged before the first run, else the latest."""
    predicted_before: bool = False
    """Whether the predictions were logged before the first run."""
    failures: tuple[Failure, ...] = ()
    """Failed runs that ended before they were recorded in MLflow."""

    def __getitem__(self, variant: str) -> tuple[RecordedRun, ...]:
        """The runs of a variant."""
        return tuple(run for run in self.runs if run.name == variant)

    @property
    def variants(self) -> tuple[Variant, ...]:
        """The variants, in the order in which they first ran."""
        return variants_of(self.runs, self.failures)

    @property
    def unended(self) -> tuple[str, ...]:
        """A line each for runs with status running that have ended, and that are still running."""
        silent = [r for r in self.runs if r.failure and r.status in UNENDED]
        running = [run for run in self.runs if run.running]
        lines = []
        if silent:
            names = ", ".join(f"{run.name} seed {run.seed} ({run.failure})" for run in silent)
            lines.append(f"{len(silent)} of {len(self.runs)} runs count as failed: {names}")
        if running:
            names = ", ".join(f"{run.name} seed {run.seed}" for run in running)
            lines.append(f"{len(running)} of {len(self.runs)} runs are still running: {names}")
        return tuple(lines)

    @property
    def results(self) -> Results:
        """The results that a comparison is made from."""
        return Results(
            self.name,
            self.variants,
            environments_of(self.runs),
            self.predictions,
            predicted_before=self.predicted_before,
        )


def read_study(uri: str, name: str, experiment: str | None = None) -> Study:
    """The study of that name in the store, with the latest run of each variant and seed.

    Raises UserError if the store does not answer or has no such study, or if several experiments
    have one and `experiment` is not given.
    """
    file = sqlite_file(uri)
    if file is not None and not os.path.exists(file):
        raise UserError(f"there is no MLflow store {file}; give another --uri")
    client = open_store(uri, reads=True)
    with still_answering(uri):
        experiments = _experiments(client, experiment)
        found = _of_study(client, list(experiments), name)
        trainings = [run for run in found if "seed" in run.data.tags]
        if not trainings:
            raise _unknown(client, list(experiments), name, uri)
        places = {experiments[run.info.experiment_id] for run in trainings}
        if len(places) > 1:
            raise UserError(
                f"the study {name!r} is in several experiments: {', '.join(sorted(places))}; name "
                f"one with --experiment"
            )
        latest = {(run.data.tags["variant"], run.data.tags["seed"]): run for run in trainings}
        runs = tuple(_recorded(client, run, file) for run in latest.values())
        predictions, predicted_before = _predictions(client, found, file)
        lost = _lost(client, found, file)
        failures = tuple(each for key, each in lost.items() if key not in latest)
    return Study(name, uri, places.pop(), runs, predictions, predicted_before, failures)


def place_of(uri: str, name: str) -> str:
    """The id of the experiment that holds the study; of several, the one with the latest run.

    Raises UserError if the store does not answer or has no such study.
    """
    client = open_store(uri, reads=True)
    with still_answering(uri):
        experiments = list(_experiments(client, None))
        found = _of_study(client, experiments, name)
        if not found:
            raise _unknown(client, experiments, name, uri)
    return str(found[-1].info.experiment_id)


def predictions_of(uri: str, name: str, experiment: str) -> tuple[tuple[Prediction, ...], bool]:
    """Predictions of a study that is about to run, and whether they precede all its runs so far."""
    file = sqlite_file(uri)
    if file is not None and not os.path.exists(file):
        return (), False
    client = open_store(uri)
    with still_answering(uri):
        found = _of_study(client, list(_experiments(client, experiment)), name)
        return _predictions(client, found, file)


def _experiments(client: "MlflowClient", only: str | None) -> dict[str, str]:
    """Experiment id -> name, of all experiments or `only` of one name."""
    found = {each.experiment_id: each.name for each in client.search_experiments()}
    return {key: name for key, name in found.items() if only in (None, name)}


def _of_study(client: "MlflowClient", experiments: list[str], name: str) -> list["Run"]:
    """All runs of the study, oldest first: trainings, predictions, comparisons."""
    query = f"tags.study = '{name}'" if PLAIN.fullmatch(name) else ""
    found = _search(client, experiments, query)
    return [run for run in found if run.data.tags.get("study") == name]


def _unknown(client: "MlflowClient", experiments: list[str], name: str, uri: str) -> UserError:
    tags = [run.data.tags for run in _search(client, experiments, "")]
    known = sorted({each["study"] for each in tags if each.get("study")})
    near = difflib.get_close_matches(name, known, n=1)
    advice = f"give one of {', '.join(known[:8])}" if known else "the store has none; give another"
    advice = f"the nearest is {near[0]}; {advice}" if near else advice
    return UserError(f"no study {name!r} in {masked(uri)}; {advice}")


def _predictions(
    client: "MlflowClient", found: Sequence["Run"], store: Path | None
) -> tuple[tuple[Prediction, ...], bool]:
    """The latest predictions logged before the first training, and True; else the latest, False."""
    logged = [run for run in found if run.data.tags.get("variant") == PREDICTION_TAG]
    first = min((run.info.start_time for run in found if "seed" in run.data.tags), default=math.inf)
    before = [run for run in logged if run.info.end_time and run.info.end_time <= first]
    for run in reversed(before or logged):
        file = artifacts_of(client, run, store) / PREDICTIONS_FILE
        if os.path.exists(file):
            return read_predictions(file), bool(before)
    return (), False


def _lost(
    client: "MlflowClient", found: Sequence["Run"], store: Path | None
) -> dict[tuple[str, str], Failure]:
    """Failed runs that comparisons of the study have recorded, the latest of each, by key."""
    lost: dict[tuple[str, str], Failure] = {}
    for run in found:
        if FAILURES_TAG in run.data.tags:
            file = artifacts_of(client, run, store) / FAILURES_FILE
            lost |= {each.key: each for each in read_failures(file)} if os.path.exists(file) else {}
    return lost


def _search(client: "MlflowClient", experiments: list[str], query: str) -> Iterator["Run"]:
    """Runs that the query finds, oldest first."""
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
    files = folder_of(client, run, store)
    config, summary = _config(run, files), files.summary
    found = RecordedRun(run.info.run_id, config, run.info.status, summary, files.path)
    if diverged := _diverged(found, run):
        return replace(found, summary=None, failure=divergence(diverged))
    # A run may fail after its summary, e.g. if its last checkpoint cannot be written.
    if summary is not None and run.info.status not in ("FAILED", "KILLED"):
        return found
    return replace(found, summary=None, failure=ending_of(client, run))


def _diverged(found: RecordedRun, run: "Run") -> str | None:
    """What was not finite, and when: from the tag, else as records without the tag show it."""
    if DIVERGED_TAG in run.data.tags:
        return str(run.data.tags[DIVERGED_TAG])
    if found.summary is not None and found.summary.diverged:
        return found.summary.diverged
    if f"{TRAIN_LOSS}_nonfinite" not in run.data.metrics:
        return None
    # Losses that are not finite are counted under `<name>_nonfinite`, not logged under `<name>`.
    bad, well = found.metric(f"{TRAIN_LOSS}_nonfinite").index, found.metric(TRAIN_LOSS).index
    last = well[-1] if len(well) else 0
    after = [step for step in bad if step > last]
    return f"the loss of window {after[0]} is not finite" if after else None


def _config(run: "Run", files: RunFolder) -> Config:
    """The config that the run resolved.

    If the run was killed before its file arrived, the config is made from the run's parameters, or
    at least its tags.
    """
    if found := files.config:
        return found
    own = {"name": run.data.tags["variant"], "seed": int(run.data.tags["seed"])}
    # "None" is left out: it is the default of every key that may be None.
    known = {key: value for key, value in run.data.params.items() if value != "None"}
    try:
        return Config.from_flattened(known | own, f"run {run.info.run_id}")
    except UserError:
        return Config.model_validate(own | {"train": {"steps": 1}})
