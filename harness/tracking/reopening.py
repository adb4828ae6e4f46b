"""Reopens a run in MLflow that goes on after a failure, and finds out what it already holds."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.config import Config
from harness.errors import UserError
from harness.measure.redaction import masked
from harness.measure.summary import DIVERGED_TAG
from harness.tracking.address import store_uri
from harness.tracking.connection import connect, open_store, short_reason, still_answering
from harness.tracking.delivery import Point, RunInStore

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Held:
    """Which steps of each metric the store has. MLflow keeps whatever it was sent, so a step that
    is trained again must not be sent again: its first value stays, which on the same ranks is equal
    but for the times that were measured."""

    steps: Mapping[str, frozenset[int]] = field(default_factory=dict)

    def lacking(self, step: int, values: Mapping[str, float]) -> dict[str, float]:
        """The values of this step that the store does not have. Step 0 is that of a run's end."""
        return {
            name: value
            for name, value in values.items()
            if not step or step not in self.steps.get(name, ())
        }

    def missing(self, points: Iterable[dict[str, Any]]) -> list[Point]:
        """What the store lacks of these lines of metrics: it was away, or the run ended before it
        was sent."""
        found = []
        for point in points:
            lacking = self.lacking(point["step"], point["metrics"])
            if lacking and self.steps:
                found.append(Point(point["step"], int(point["time"] * 1000), lacking))
        return found


@dataclass(frozen=True)
class Reopened:
    """A run in MLflow that goes on."""

    run: RunInStore
    held: Held


def reopen_run(config: Config, run_id: str, names: Iterable[str]) -> Reopened:
    """Opens the run again, and looks up which steps of these metrics it has.

    A store that does not answer now is no reason not to train: then a step may be there twice, of
    which a warning is printed. Raises UserError for a store that cannot be opened at all.
    """
    uri = store_uri(config.tracking)
    try:
        client = open_store(uri)
        with still_answering(uri, does="does not open a run again"):
            client.update_run(run_id, status="RUNNING")
            if DIVERGED_TAG in client.get_run(run_id).data.tags:
                client.delete_tag(run_id, DIVERGED_TAG)
            held = Held({name: _steps(client, run_id, name) for name in names})
    except UserError as error:
        log.warning("%s; metrics that are measured again may be in it twice", error)
        client, held = _unanswered(uri), Held()
    return Reopened(RunInStore(client, run_id, masked(uri)), held)


def _steps(client: "MlflowClient", run_id: str, name: str) -> frozenset[int]:
    return frozenset(point.step for point in client.get_metric_history(run_id, name))


def _unanswered(uri: str) -> "MlflowClient":
    try:
        return connect(uri)
    except Exception as error:
        raise UserError(
            f"the MLflow store {masked(uri)} cannot be opened ({short_reason(error)}); start it, "
            f"or set tracking.enabled=false"
        ) from error
