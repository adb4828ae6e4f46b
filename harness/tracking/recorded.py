"""One training as its record has it, and what a study's trainings come to, by variant."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from harness.config import Config
from harness.measure.summary import RunSummary
from harness.tracking.failure import Failure
from harness.tracking.results import Variant
from harness.tracking.run_folder import CONFIG, RunFolder


@dataclass(frozen=True)
class RecordedRun:
    """One training as its folder, or MLflow, keeps it."""

    run_id: str
    """MLflow's; empty if it is not there."""
    config: Config
    status: str
    """FINISHED, FAILED, KILLED or RUNNING, as the store has it."""
    summary: RunSummary | None
    """None if the run did not end well, or diverged."""
    folder: Path
    """Its artifacts, or the folder it was trained in if the store did not take them."""
    failure: str | None = None
    """How a run without a summary ended; None if it goes on."""

    @property
    def name(self) -> str:
        """Its variant's."""
        return self.config.name

    @property
    def seed(self) -> int:
        return self.config.seed

    @property
    def running(self) -> bool:
        return self.summary is None and self.failure is None

    @property
    def files(self) -> RunFolder:
        return RunFolder(self.folder)

    @property
    def environment(self) -> dict[str, Any]:
        """What it noted of machine and versions; empty if it noted nothing."""
        return self.files.environment

    @cached_property
    def _points(self) -> list[dict[str, Any]]:
        return self.files.points()

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


def variants_of(
    runs: Sequence[RecordedRun], lost: Sequence[Failure] = (), planned: Sequence[Config] = ()
) -> tuple[Variant, ...]:
    """In the order in which they were planned, then in which they first ran.

    `lost`: runs that left no record. `planned`: variants that belong to the study though none of
    their runs may have begun.
    """
    names = [config.name for config in planned]
    names += [run.name for run in runs] + [each.config.name for each in lost]
    return tuple(
        _variant(
            [run for run in runs if run.name == name],
            [each for each in lost if each.config.name == name],
            [each for each in planned if each.name == name],
        )
        for name in dict.fromkeys(names)
    )


def _variant(
    runs: Sequence[RecordedRun], lost: Sequence[Failure], planned: Sequence[Config]
) -> Variant:
    by_seed = sorted(runs, key=lambda run: run.seed)
    summaries = tuple(run.summary for run in by_seed if run.summary is not None)
    failures = [run.failure for run in by_seed if run.failure is not None]
    # The config that a run resolved is worth more than the one that it was started with.
    whole = [run.config for run in runs if run.files.has(CONFIG)]
    configs = [*whole, *(each.config for each in lost), *planned, *(run.config for run in runs)]
    return Variant(
        configs[0],
        summaries,
        (*failures, *(each.reason for each in lost)),
        running=sum(run.running for run in by_seed),
    )


def environments_of(runs: Sequence[RecordedRun]) -> tuple[Mapping[str, Any], ...]:
    """Those of the runs that noted one."""
    return tuple(each for run in runs if (each := run.environment))
