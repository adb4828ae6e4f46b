"""Delivers a run's record to MLflow: values, files and the end, which do not wait for each other.

A server may accept metrics but no artifacts, or the reverse; the end of a run it accepts whenever
it answers.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.tracking import signs_of_life
from harness.tracking.connection import AWAY, Status, short_reason
from harness.tracking.outbox import Outbox, Refused

if TYPE_CHECKING:
    from mlflow import MlflowClient

FINISH_SECONDS = 6.0
"""Time that the end of a run waits for items that are not delivered yet."""
END_SECONDS = 25.0
"""The same for the run's final status; MLflow waits 20 s for a SQLite file in use."""
END_ATTEMPTS = 2
LARGE_FINISH_SECONDS = 60.0
"""The same for each large file, of which no progress is seen during its upload."""
REQUEST_METRICS = 1000
"""Most metrics that MLflow accepts in one request."""
REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST", "INVALID_STATE")

"""MLflow's error codes for items that it will never accept."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Point:
    """Metrics of one step."""

    step: int
    milliseconds: int
    """Time since 1970."""
    values: dict[str, float]


@dataclass(frozen=True)
class Tag:
    """A tag to set on the run."""

    name: str
    value: str


@dataclass(frozen=True)
class Artifact:
    """A file to copy into the run's artifacts."""

    path: Path
    folder: str | None = None
    """Folder among the artifacts; None: their top."""


@dataclass(frozen=True)
class RunInStore:
    """A run in MLflow, and the client with which to reach it."""

    client: "MlflowClient"
    run_id: str
    address: str
    """Address of the store, with secrets masked."""

    def values(self, entries: list[Point | Tag]) -> Iterator[None]:
        """Sends metrics and tags; yields once for each request that was answered."""
        from mlflow.entities import Metric

        # A repeated attempt sends some values twice; the store keeps one of several equal ones.
        metrics = [
            Metric(name, value, entry.milliseconds, entry.step)
            for entry in entries
            if isinstance(entry, Point)
            for name, value in entry.values.items()
        ]
        with _refusals():
            for first in range(0, len(metrics), REQUEST_METRICS):
                part = metrics[first : first + REQUEST_METRICS]
                self.client.log_batch(self.run_id, metrics=part)
                yield
            for entry in entries:
                if isinstance(entry, Tag):
                    self.client.set_tag(self.run_id, entry.name, entry.value)
                    yield

    def files(self, artifacts: list[Artifact]) -> None:
        """Copies the files into the run's artifacts."""
        with _refusals():
            for artifact in artifacts:
                # Regular files only: a device or a pipe may never end, and would fill the store.
                if not os.path.isfile(artifact.path):
                    raise Refused(f"there is no file {artifact.path}")
                self.client.log_artifact(self.run_id, str(artifact.path), artifact.folder)

    def end(self, status: list[Status]) -> None:
        """Sets the run's final status."""
        for attempt in range(1, END_ATTEMPTS + 1):
            try:
                self.client.set_terminated(self.run_id, status[0])
                return
            except Exception:
                if attempt == END_ATTEMPTS:
                    raise
            time.sleep(1.0)


@contextmanager
def _refusals() -> Iterator[None]:
    """Turns MLflow's error into Refused if it will never accept the item."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code in REFUSALS:
            raise Refused(str(error)) from error
        raise


class Troubles:
    """Warns once for each kind of item that a store does not accept, and once if it is away."""

    def __init__(self, address: str, folder: Path) -> None:
        self._address = address
        self._folder = folder
        self._warned: set[str] = set()

    def of(self, what: str) -> Callable[[Exception, object], None]:
        """The function that an outbox of such items calls for each error and its item."""

        def warn(error: Exception, item: object) -> None:
            short = short_reason(error)
            away = isinstance(error, TimeoutError) or short in AWAY.values()
            kind = "away" if away else what
            if kind in self._warned:
                return
            self._warned.add(kind)
            name = item.path.name if isinstance(item, Artifact) else what
            log.warning(
                "the MLflow store %s does not accept this run's %s (%s); training goes on, and its "
                "whole record is in %s",
                self._address,
                name,
                short,
                self._folder,
            )

        return warn


class Delivery:
    """Delivers values and files in the background; nothing here raises or waits before `finish`."""

    def __init__(self, run: RunInStore, folder: Path) -> None:
        self._run = run
        self._troubles = Troubles(run.address, folder)
        pulse = signs_of_life.Pulse()
        self._values: Outbox[Point | Tag] = Outbox(
            run.values, self._troubles.of("metrics"), each_round=lambda: _beat(pulse)
        )
        self._files = self._open_files()
        self._large: Outbox[Artifact] | None = None

    def put(self, entry: Point | Tag) -> None:
        self._values.put(entry)

    def file(self, artifact: Artifact) -> None:
        self._files.put(artifact)

    def large_file(self, artifact: Artifact) -> None:
        """Delivers a large file in its own thread, so that small files do not wait for it."""
        if self._large is None:
            self._large = self._open_files()
        self._large.put(artifact)

    def finish(self, status: Status) -> None:
        """Delivers the rest, within seconds, and sets the run's final status.

        Large files may take longer if the store answers at all; the run is closed by then.
        """
        end: Outbox[Status] = Outbox(self._run.end, self._troubles.of("end"))
        end.put(status)
        for way in (end, self._values, self._files):
            way.hurry()  # all in parallel, so that waits for a store that is away do not add up
        answers = end.close(END_SECONDS)
        for rest in (self._values, self._files):
            rest.close(FINISH_SECONDS)
        if self._large is not None:
            self._large.close(LARGE_FINISH_SECONDS if answers else 0.0)

    def _open_files(self) -> Outbox[Artifact]:
        return Outbox(self._run.files, self._troubles.of("files"), apart=True)


def _beat(pulse: signs_of_life.Pulse) -> Tag | None:
    return Tag(signs_of_life.TAG, pulse.now()) if pulse.due() else None
