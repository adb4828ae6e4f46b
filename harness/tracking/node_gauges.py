"""Samples a node's load with MLflow's own monitors, into the run in MLflow."""

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from harness.config import Config
from harness.measure.redaction import masked
from harness.tracking.address import sqlite_file, store_uri
from harness.tracking.connection import connect, short_reason
from harness.tracking.delivery import Point, RunInStore, Tag
from harness.tracking.outbox import Outbox

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

SAMPLED = "cpu_utilization_percentage"
"""A value of every sample."""
SAMPLES_FINISH_SECONDS = 2.0
"""Time that the end of a run waits for a node's last samples."""

log = logging.getLogger(__name__)


@contextmanager
def monitor_node(config: Config, run_id: str | None, node: int) -> Iterator[None]:
    """Samples this machine while the block runs, as metrics `system/node_<node>/...` of the run.

    Call it on one rank of each node. If the store does not answer or the machine cannot be sampled,
    only the samples are lost.
    """
    gauges = _open(config, run_id, node)
    if gauges is None:
        yield
        return
    gauges.start()
    try:
        yield
    finally:
        gauges.stop()


class _Gauges:
    def __init__(
        self,
        run: RunInStore,
        monitor: "SystemMetricsMonitor",
        node: int,
        seconds: float,
        first: int,
    ) -> None:
        self._monitor = monitor
        self._node = node
        self._seconds = seconds
        self._first = first
        self._troubles: list[Exception] = []
        self._outbox: Outbox[Point | Tag] = Outbox(
            run.values, lambda error, _: self._troubles.append(error)
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gauges", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(1.0)
        self._outbox.close(SAMPLES_FINISH_SECONDS)
        # On node 0 the tracker has already warned.
        if self._troubles and self._node and not self._outbox.delivered:
            _warn(self._node, short_reason(self._troubles[0]))

    def _run(self) -> None:
        try:
            self._sample()
        except Exception as error:  # samples are not worth a failed run, or a traceback
            _warn(self._node, short_reason(error))

    def _sample(self) -> None:
        # The first sample comes after at most 1 s, so that short runs have one.
        pause, step = min(1.0, self._seconds), self._first
        self._monitor.collect_metrics()
        while True:
            last = self._stop.wait(pause)
            for each in self._monitor.monitors:
                each.clear_metrics()
            self._monitor.collect_metrics()
            found = self._monitor.aggregate_metrics()
            values = {f"system/node_{self._node}/{name}": float(found[name]) for name in found}
            self._outbox.put(Point(step, int(time.time() * 1000), values))
            if last:
                return
            pause, step = self._seconds, step + 1


def _open(config: Config, run_id: str | None, node: int) -> _Gauges | None:
    seconds = config.tracking.system_metrics_seconds
    if run_id is None or not seconds or not config.tracking.enabled:
        return None
    try:
        uri = store_uri(config.tracking)
        file = sqlite_file(uri)
        if file and not os.path.exists(file):
            _warn(node, f"the node does not see {file}; use a tracking server")
            return None
        client = connect(uri)
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        # MLflow's own loop ends for good once the store does not answer; ours keeps the samples.
        monitor = SystemMetricsMonitor(run_id, node_id=f"node_{node}", tracking_uri=uri)
    except Exception as error:  # samples are not worth a failed run
        _warn(node, short_reason(error))
        return None
    first = _next_step(client, run_id, node)
    return _Gauges(RunInStore(client, run_id, masked(uri)), monitor, node, seconds, first)


def _next_step(client: "MlflowClient", run_id: str, node: int) -> int:
    """The step of the next sample: a run that goes on after a failure has some already."""
    try:
        found = client.get_metric_history(run_id, f"system/node_{node}/{SAMPLED}")
        return 1 + max((point.step for point in found), default=-1)
    except Exception:
        return 0


def _warn(node: int, reason: str) -> None:
    log.warning("no system metrics of node %d: %s", node, reason)
