"""A recorded training, and a study's trainings grouped by variant."""

import math
from collections.abc import Iterator, Mapping, Sequence
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

CHOSEN = ("exchange.route", "exchange.pieces", "exchange.max_pieces")
"""Settings that a run may choose by measured times, so that seeds of one experiment may differ."""


@dataclass(frozen=True)
class RecordedRun:
    """One training, read from its folder or from MLflow."""

    run_id: str
    """MLflow's id; empty if the run is not in MLflow."""
    config: Config
    status: str
    """FINISHED, FAILED, KILLED or RUNNING, as recorded in the store."""
    summary: RunSummary | None
    """None if the run failed or diverged."""
    folder: Path
    """Folder of its artifacts, or in which it was trained if the store did not accept them."""
    failure: str | None = None
    """How a run without a summary ended; None if it is still running."""

    @property
    def name(self) -> str:
        """Name of its variant."""
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
        """Facts about machine and versions that the run recorded; empty without any."""
        return self.files.environment

    @cached_property
    def _points(self) -> list[dict[str, Any]]:
        return self.files.points()

    def metric(self, name: str) -> "pd.Series[float]":
        """One metric by window, without NaN; cheaper than the whole `history`."""
        found = {p["step"]: p["metrics"][name] for p in self._points if name in p["metrics"]}
        return pd.Series(found, dtype=float).sort_index()

    @cached_property
    def history(self) -> pd.DataFrame:
        """One row per logged window, in order: metrics by their MLflow names, and `time`, in
        seconds since 1970. NaN if a metric was not logged in that window. Without `summary/`."""
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
    """The variants of a study, in the order in which they were planned, else in which they ran.

    `lost`: runs that left no record. `planned`: variants that belong to the study even if none of
    their runs has started.
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
    # The config that a run has resolved is more complete than the one that it was started with.
    whole = [run.config for run in runs if run.files.has(CONFIG)]
    configs = [*whole, *(each.config for each in lost), *planned, *(run.config for run in runs)]
    return Variant(
        configs[0],
        summaries,
        (*failures, *(each.reason for each in lost)),
        running=sum(run.running for run in by_seed),
        mixed=tuple(_mixed([run.config for run in by_seed if run.summary is not None])),
    )


def _mixed(configs: Sequence[Config]) -> Iterator[str]:
    values = [config.flattened() for config in configs]
    for key in CHOSEN:
        found = dict.fromkeys(str(each[key]) for each in values)
        if len(found) > 1:
            yield f"{key} ({', '.join(found)})"


def environments_of(runs: Sequence[RecordedRun]) -> tuple[Mapping[str, Any], ...]:
    """Environments of the runs that recorded one."""
    return tuple(each for run in runs if (each := run.environment))
