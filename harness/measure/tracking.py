"""Keeps the record of a run: every metric in its folder, and in MLflow as long as that answers."""

import getpass
import json
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config import Config
from harness.measure.outbox import Outbox, Refused
from harness.measure.redaction import without_password
from harness.measure.store import (
    Status,
    connect,
    in_short,
    open_experiment,
    open_store,
    sqlite_file,
    store_uri,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

CONFIG_FILE = "config.yaml"
ENVIRONMENT_FILE = "environment.json"
METRICS_FILE = "metrics.jsonl"
RUN_FILE = "mlflow.json"
FINISH_SECONDS = 6.0
"""How long the end of a run waits for what is not delivered yet."""
LARGE_FINISH_SECONDS = 60.0
"""The same for each large file: one gives no sign of life while it travels."""
SAMPLES_FINISH_SECONDS = 2.0
"""The same for a node's last samples."""
REQUEST_METRICS = 1000
REQUEST_PARAMS = 100
"""What MLflow takes in one request."""
REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST", "INVALID_STATE")

log = logging.getLogger(__name__)


def run_id_of(folder: Path) -> str | None:
    """The MLflow run that a run's folder belongs to; None where it has none."""
    file = folder / RUN_FILE
    return json.loads(file.read_text(encoding="utf-8"))["run_id"] if file.exists() else None


@dataclass(frozen=True)
class Point:
    """Metrics of one step."""

    step: int
    milliseconds: int
    """Since 1970."""
    values: dict[str, float]


@dataclass(frozen=True)
class Artifact:
    path: Path
    folder: str | None = None


@dataclass(frozen=True)
class Tag:
    name: str
    value: str


@dataclass(frozen=True)
class End:
    status: Status


Entry = Point | Artifact | Tag | End


def _deliver(client: "MlflowClient", run_id: str, entries: Iterable[Entry]) -> Iterator[None]:
    """One step for each request that was answered."""
    from mlflow.entities import Metric
    from mlflow.exceptions import MlflowException

    metrics: list[Metric] = []
    try:
        for entry in entries:
            if isinstance(entry, Point):
                for name, value in entry.values.items():
                    metrics.append(Metric(name, value, entry.milliseconds, entry.step))
        # A repeated attempt sends some values twice: the store keeps one of equal ones.
        for first in range(0, len(metrics), REQUEST_METRICS):
            client.log_batch(run_id, metrics=metrics[first : first + REQUEST_METRICS])
            yield
        for entry in entries:
            if isinstance(entry, Artifact):
                client.log_artifact(run_id, str(entry.path), entry.folder)
            elif isinstance(entry, Tag):
                client.set_tag(run_id, entry.name, entry.value)
            elif isinstance(entry, End):
                client.set_terminated(run_id, entry.status)
            yield
    except MlflowException as error:
        if error.error_code in REFUSALS:
            raise Refused(str(error)) from error
        raise


class Tracker:
    """The record of one run, kept by rank 0; a silent one elsewhere.

    Nothing here raises or waits for the store once `start` returned.
    """

    def __init__(
        self,
        folder: Path | None,
        run_id: str | None,
        outbox: Outbox[Entry] | None,
        open_large: Callable[[], Outbox[Entry]] | None = None,
    ) -> None:
        self.run_id = run_id
        """MLflow's; None where nothing goes to MLflow."""
        self._outbox = outbox
        self._open_large = open_large
        self._large: Outbox[Entry] | None = None
        """A thread of its own, one file at a time: neither metrics nor the end wait for these."""
        self._metrics = None if folder is None else folder / METRICS_FILE
        self._file = None if self._metrics is None else self._metrics.open("a", buffering=1)
        self._nonfinite: Counter[str] = Counter()

    @classmethod
    def silent(cls) -> "Tracker":
        """Takes everything and keeps nothing."""
        return cls(None, None, None)

    @classmethod
    def start(cls, config: Config, folder: Path, environment: dict[str, Any]) -> "Tracker":
        """Opens the run in MLflow, and its files in `folder`, which exists.

        Raises UserError where the store does not answer.
        """
        (folder / CONFIG_FILE).write_text(config.to_yaml(), encoding="utf-8")
        (folder / ENVIRONMENT_FILE).write_text(json.dumps(environment, indent=2, default=str))
        if not config.tracking.enabled:
            return cls(folder, None, None)
        client, run_id = _create_run(config, folder, environment)

        def deliver(entries: list[Entry]) -> Iterator[None]:
            return _deliver(client, run_id, entries)

        warn = _warn_once(config, folder)
        tracker = cls(
            folder, run_id, Outbox(deliver, warn), lambda: Outbox(deliver, warn, batch_items=1)
        )
        tracker.artifact(folder / CONFIG_FILE)
        tracker.artifact(folder / ENVIRONMENT_FILE)
        return tracker

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Values that are not finite are left out and counted as `<name>_nonfinite`."""
        values = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        for name in metrics.keys() - values.keys():
            self._nonfinite[name] += 1
            values[f"{name}_nonfinite"] = float(self._nonfinite[name])
        now = time.time()
        if self._file is not None:
            line = json.dumps({"step": step, "time": round(now, 3), "metrics": values})
            self._file.write(line + "\n")
        if self._outbox is not None:
            self._outbox.put(Point(step, int(now * 1000), values))

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Copies the file, which must stay until `finish`, into MLflow, there into `folder`."""
        if self._outbox is not None:
            self._outbox.put(Artifact(path, folder))

    def large_artifact(self, path: Path, folder: str) -> None:
        """The same for a file that takes long: it travels beside everything else."""
        if self._large is None and self._open_large is not None:
            self._large = self._open_large()
        if self._large is not None:
            self._large.put(Artifact(path, folder))

    def tag(self, name: str, value: str) -> None:
        """Sets a tag of the run in MLflow."""
        if self._outbox is not None:
            self._outbox.put(Tag(name, value))

    def finish(self, status: Status) -> None:
        """Delivers the rest, for seconds at most, and closes the run as what it was.

        With it goes the file of all metrics: a study is read from it in one piece. Large files may
        take longer, where the store answers at all; the run is closed by then.
        """
        if self._file is not None:
            self._file.close()
        if self._outbox is not None:
            assert self._metrics is not None
            self._outbox.put(Artifact(self._metrics))
            self._outbox.put(End(status))
            answers = self._outbox.close(FINISH_SECONDS)
            if self._large is not None:
                self._large.close(LARGE_FINISH_SECONDS if answers else 0.0)


def _create_run(
    config: Config, folder: Path, environment: dict[str, Any]
) -> tuple["MlflowClient", str]:
    uri = store_uri(config)
    client = open_store(uri)
    experiment_id = open_experiment(client, uri, config.tracking.experiment)
    tags = {
        "study": config.tracking.study or "",
        "variant": config.name,
        "seed": str(config.seed),
        "mlflow.user": getpass.getuser(),
        "mlflow.source.name": "harness train",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": str(environment.get("git_commit") or ""),
    }
    # With a client and the run's id, not the fluent functions: their exit hook would mark a run
    # that crashed as FINISHED.
    run = client.create_run(
        experiment_id,
        run_name=f"{config.name}-s{config.seed}",
        tags={name: value for name, value in tags.items() if value},
    )
    run_id = str(run.info.run_id)
    _log_params(client, run_id, config.flattened())
    where = {"tracking_uri": without_password(uri), "experiment_id": experiment_id}
    (folder / RUN_FILE).write_text(json.dumps(where | {"run_id": run_id}, indent=2))
    return client, run_id


def _log_params(client: "MlflowClient", run_id: str, params: dict[str, Any]) -> None:
    from mlflow.entities import Param

    entries = [Param(name, str(value)) for name, value in params.items()]
    for first in range(0, len(entries), REQUEST_PARAMS):
        client.log_batch(run_id, params=entries[first : first + REQUEST_PARAMS])


def _warn_once(config: Config, folder: Path) -> Any:
    shown, told = without_password(store_uri(config)), list[Exception]()

    def warn(error: Exception) -> None:
        told.append(error)
        if len(told) > 1:
            return
        log.warning(
            "the MLflow store %s does not take this run's metrics (%s); training goes on, all of "
            "them lie in %s",
            shown,
            in_short(error),
            folder / METRICS_FILE,
        )

    return warn


@contextmanager
def monitor_node(config: Config, run_id: str | None, node: int) -> Iterator[None]:
    """Samples this machine into the run, as `system/node_<node>/...`, while the block runs.

    For one rank of each node. A store that does not answer costs nothing but the samples.
    """
    seconds = config.tracking.system_metrics_seconds
    if run_id is None or not seconds or not config.tracking.enabled:
        yield
        return
    uri = store_uri(config)
    file = sqlite_file(uri)
    if file and not file.exists():
        log.warning(
            "no system metrics of node %d: it does not see %s; a tracking server sees all nodes",
            node,
            file,
        )
        yield
        return
    with _sampling(uri, run_id, node, seconds):
        yield


@contextmanager
def _sampling(uri: str, run_id: str, node: int, seconds: float) -> Iterator[None]:
    client = connect(uri)
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    def deliver(entries: list[Entry]) -> Iterator[None]:
        return _deliver(client, run_id, entries)

    troubles: list[Exception] = []
    outbox = Outbox(deliver, troubles.append)
    # MLflow's own loop ends for good when the store once does not answer; ours keeps the samples.
    monitor = SystemMetricsMonitor(run_id, node_id=f"node_{node}", tracking_uri=uri)
    stop = threading.Event()
    thread = threading.Thread(
        target=_sample, args=(monitor, outbox, stop, node, seconds), name="gauges", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(1.0)
        outbox.close(SAMPLES_FINISH_SECONDS)
        # On node 0 the tracker has said it already.
        if troubles and node and not outbox.delivered:
            log.warning("no system metrics of node %d: %s", node, in_short(troubles[0]))


def _sample(
    monitor: "SystemMetricsMonitor",
    outbox: Outbox[Entry],
    stop: threading.Event,
    node: int,
    seconds: float,
) -> None:
    pause, step = min(1.0, seconds), 0
    monitor.collect_metrics()
    while True:
        last = stop.wait(pause)
        for each in monitor.monitors:
            each.clear_metrics()
        monitor.collect_metrics()
        found = monitor.aggregate_metrics()
        values = {f"system/node_{node}/{name}": float(value) for name, value in found.items()}
        outbox.put(Point(step, int(time.time() * 1000), values))
        if last:
            return
        pause, step = seconds, step + 1
