"""The ways of a run's record to MLflow: values, files and the end, none of which waits for another.

A server may take metrics and no artifacts, or the reverse; the end it takes whenever it answers.
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
from harness.tracking.connection import AWAY, Status, in_short
from harness.tracking.outbox import Outbox, Refused

if TYPE_CHECKING:
    from mlflow import MlflowClient

FINISH_SECONDS = 6.0
"""How long the end of a run waits for what is not delivered yet."""
END_SECONDS = 25.0
"""The same for how the run ended: a SQLite file that another process holds is waited for, 20 s."""
END_ATTEMPTS = 2
LARGE_FINISH_SECONDS = 60.0
"""The same for each large file: one gives no sign of life while it travels."""
REQUEST_METRICS = 1000
"""What MLflow takes in one request."""
REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST", "INVALID_STATE")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Point:
    """Metrics of one step."""

    step: int
    milliseconds: int
    """Since 1970."""
    values: dict[str, float]


@dataclass(frozen=True)
class Tag:
    name: str
    value: str


@dataclass(frozen=True)
class Artifact:
    path: Path
    folder: str | None = None


@dataclass(frozen=True)
class RunInStore:
    """A run that MLflow knows, and the client that reaches it."""

    client: "MlflowClient"
    run_id: str
    address: str
    """Of the store, as it may be shown."""

    def values(self, entries: list[Point | Tag]) -> Iterator[None]:
        """One step for each request that was answered."""
        from mlflow.entities import Metric

        # A repeated attempt sends some values twice: the store keeps one of equal ones.
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
        with _refusals():
            for artifact in artifacts:
                # A device or a pipe may have no end: a store would be filled with it.
                if not os.path.isfile(artifact.path):
                    raise Refused(f"there is no file {artifact.path}")
                self.client.log_artifact(self.run_id, str(artifact.path), artifact.folder)

    def end(self, status: list[Status]) -> None:
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
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code in REFUSALS:
            raise Refused(str(error)) from error
        raise


class Troubles:
    """Says once of each kind what a store does not take; that it is away, once for all kinds."""

    def __init__(self, address: str, folder: Path) -> None:
        self._address = address
        self._folder = folder
        self._told: set[str] = set()

    def of(self, what: str) -> Callable[[Exception, object], None]:
        """What an outbox of such items tells its errors to."""

        def tell(error: Exception, item: object) -> None:
            short = in_short(error)
            away = isinstance(error, TimeoutError) or short in AWAY.values()
            kind = "away" if away else what
            if kind in self._told:
                return
            self._told.add(kind)
            name = item.path.name if isinstance(item, Artifact) else what
            log.warning(
                "the MLflow store %s does not take this run's %s (%s); training goes on, and all "
                "of its record is in %s",
                self._address,
                name,
                short,
                self._folder,
            )

        return tell


class Delivery:
    """Whatever is put in is on its way; nothing here raises or waits before `finish`."""

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
        """A thread of its own: small files do not wait for it either."""
        if self._large is None:
            self._large = self._open_files()
        self._large.put(artifact)

    def finish(self, status: Status) -> None:
        """Delivers the rest, for seconds at most, and says how the run ended. Large files may take
        longer, where the store answers at all; the run is closed by then."""
        end: Outbox[Status] = Outbox(self._run.end, self._troubles.of("end"))
        end.put(status)
        for way in (end, self._values, self._files):
            way.hurry()  # all at once: the waits for a store that is away do not add up
        answers = end.close(END_SECONDS)
        for rest in (self._values, self._files):
            rest.close(FINISH_SECONDS)
        if self._large is not None:
            self._large.close(LARGE_FINISH_SECONDS if answers else 0.0)

    def _open_files(self) -> Outbox[Artifact]:
        return Outbox(self._run.files, self._troubles.of("files"), apart=True)


def _beat(pulse: signs_of_life.Pulse) -> Tag | None:
    return Tag(signs_of_life.TAG, pulse.now()) if pulse.due() else None
