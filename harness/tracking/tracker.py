"""Keeps the record of a run: all metrics in its folder, and in MLflow while that answers."""

import json
import logging
import math
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from harness.config import Config
from harness.errors import UserError
from harness.tracking import signs_of_life
from harness.tracking.connection import Status
from harness.tracking.delivery import Artifact, Delivery, Point, Tag
from harness.tracking.folders import holds_run
from harness.tracking.opening import open_run
from harness.tracking.reopening import Held, reopen_run
from harness.tracking.run_folder import CONFIG, ENVIRONMENT, METRICS, RunFolder

NOTHING = Held()
NONFINITE = "_nonfinite"
"""Behind the name of a metric: how many of its values were not finite."""

log = logging.getLogger(__name__)


class Tracker:
    """The record of one run, kept by rank 0; other ranks have a silent one.

    After `start` has returned, nothing here raises, or waits for the store or the disk.
    """

    def __init__(
        self,
        metrics: Path | None,
        file: IO[str] | None,
        delivery: Delivery | None = None,
        run_id: str | None = None,
        held: Held = NOTHING,
    ) -> None:
        """`held`: what MLflow has of a run that goes on."""
        self.run_id = run_id
        """The run's id in MLflow; None if nothing is sent to MLflow."""
        self._delivery = delivery
        self._metrics = metrics
        self._file = file
        self._held = held
        self._nonfinite: Counter[str] = Counter()

    @classmethod
    def silent(cls) -> "Tracker":
        """A tracker that ignores everything."""
        return cls(None, None)

    @classmethod
    def start(cls, config: Config, folder: Path, environment: dict[str, Any]) -> "Tracker":
        """Opens the run in MLflow, and its files in `folder`, which must exist and hold no run.

        Raises UserError if the store does not answer or the files cannot be made.
        """
        metrics = _make_files(config, folder, environment)
        if not config.tracking.enabled:
            return cls(folder / METRICS, metrics)
        try:
            run = open_run(config, folder, environment)
        except BaseException:
            metrics.close()
            RunFolder(folder).unmake()
            raise
        tracker = cls(folder / METRICS, metrics, Delivery(run, folder), run.run_id)
        tracker._describe(folder)
        return tracker

    @classmethod
    def go_on(
        cls, config: Config, folder: Path, environment: dict[str, Any], window: int
    ) -> "Tracker":
        """Opens the record in `folder` again, for a run that goes on after `window` windows.

        What was recorded of later windows is left out of the folder. In MLflow it stays, because
        nothing can be removed there; these windows are not sent to it a second time, and what had
        not reached it is sent now. Raises UserError if the files cannot be written.
        """
        own = RunFolder(folder)
        try:
            changed = _record_exchange(own, config)
            before = own.points()
            kept = own.cut_metrics(window)
            own.write_environment(environment)
            metrics = own.append_metrics()
        except OSError as error:
            raise _unwritten(folder, error) from error
        if not config.tracking.enabled:
            tracker = cls(folder / METRICS, metrics)
            tracker._catch_up(kept)
            return tracker
        run_id = own.mlflow_run_id
        if run_id is None:
            log.warning("%s does not name its run in MLflow: a new one begins there", folder)
            run, held = open_run(config, folder, environment), NOTHING
        else:
            names = sorted({name for point in before for name in point["metrics"]})
            reopened = reopen_run(config, run_id, names)
            run, held = reopened.run, reopened.held
        tracker = cls(folder / METRICS, metrics, Delivery(run, folder), run.run_id, held)
        tracker._describe(folder)
        tracker._catch_up(kept)
        if changed:
            tracker.tag("warning/exchange", changed)
        return tracker

    def _describe(self, folder: Path) -> None:
        """Sends what runs and where, which after a restart may have changed."""
        self.artifact(folder / CONFIG)
        self.artifact(folder / ENVIRONMENT)

    def _catch_up(self, kept: Sequence[dict[str, Any]]) -> None:
        """Counts on from these lines; sends what MLflow lacks of them, and who trains now."""
        for name, value in (item for point in kept for item in point["metrics"].items()):
            if name.endswith(NONFINITE):
                self._nonfinite[name.removesuffix(NONFINITE)] = int(value)
        if self._delivery is None:
            return
        for point in self._held.missing(kept):
            self._delivery.put(point)
        for name, value in signs_of_life.tags().items():
            self.tag(name, value)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Records metrics of a window; values that are not finite count as `<name>_nonfinite`."""
        values = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        for name in metrics.keys() - values.keys():
            self._nonfinite[name] += 1
            values[f"{name}{NONFINITE}"] = float(self._nonfinite[name])
        now = time.time()
        self._write({"step": step, "time": round(now, 3), "metrics": values})
        if self._delivery is not None and (lacking := self._held.lacking(step, values)):
            self._delivery.put(Point(step, int(now * 1000), lacking))

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Copies the file into the run's artifacts in MLflow, into `folder`.

        The file must exist until `finish`.
        """
        if self._delivery is not None:
            self._delivery.file(Artifact(path, folder))

    def large_artifact(self, path: Path, folder: str) -> None:
        """The same for a file that takes long: it is sent in parallel to everything else."""
        if self._delivery is not None:
            self._delivery.large_file(Artifact(path, folder))

    def tag(self, name: str, value: str) -> None:
        """Sets a tag of the run in MLflow."""
        if self._delivery is not None:
            self._delivery.put(Tag(name, value))

    def finish(self, status: Status) -> None:
        """Delivers the rest, within seconds, and closes the run with its status.

        The file of all metrics is sent as well: a study is read from it.
        """
        self._close_file()
        if self._delivery is not None:
            assert self._metrics is not None
            self._delivery.large_file(Artifact(self._metrics))
            self._delivery.finish(status)

    def _write(self, line: dict[str, Any]) -> None:
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(line) + "\n")
        except OSError as error:
            self._give_up_file(error)

    def _close_file(self) -> None:
        try:
            if self._file is not None:
                self._file.close()
        except OSError as error:
            self._give_up_file(error)

    def _give_up_file(self, error: OSError) -> None:
        file, self._file = self._file, None
        assert file is not None
        log.warning(
            "cannot write %s any more (%s); training goes on%s",
            self._metrics,
            error.strerror,
            "" if self._delivery is None else ", and its metrics go on to MLflow",
        )
        self.tag("warning/metrics_file", f"{METRICS} is incomplete: {error.strerror}")
        try:
            file.close()
        except OSError:
            return  # its buffer cannot be written, which is why the file is given up


def _make_files(config: Config, folder: Path, environment: dict[str, Any]) -> IO[str]:
    """The open file of metrics. Raises UserError, and leaves nothing, if one cannot be made."""
    own = RunFolder(folder)
    try:
        own.write_config(config)
    except FileExistsError as error:
        raise holds_run(folder) from error
    except OSError as error:
        own.unmake()
        raise _unwritten(folder, error) from error
    try:
        own.write_environment(environment)
        return own.open_metrics()
    except OSError as error:
        own.unmake()
        raise _unwritten(folder, error) from error


def _record_exchange(own: RunFolder, config: Config) -> str:
    """Records the exchange that a run goes on with, which it may have chosen again; returns a line
    on what is not as before, or ""."""
    before = own.config
    if before is None:  # it is on a host that is gone
        own.write_config(config)
        return ""
    old, new = before.exchange.model_dump(), config.exchange.model_dump()
    differing = [key for key in new if new[key] != old[key]]
    changes = [f"exchange.{key}={new[key]} instead of {old[key]}" for key in differing]
    if not changes:
        return ""
    own.rewrite_config(before.model_copy(update={"exchange": config.exchange}))
    line = (
        f"the run goes on with {', '.join(changes)}, which was chosen again; {CONFIG} says so now"
    )
    log.warning("%s", line)
    return line


def _unwritten(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"cannot write the run's files in {folder}: {error.strerror}; free space, or set "
        f"tracking.folder or --folder to another"
    )
