"""The files of one run, in its own folder or as artifacts in MLflow."""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pydantic_core import from_json

from harness.config import Config, load_resolved
from harness.measure.redaction import masked
from harness.measure.summary import RunSummary
from harness.whole_files import PARTIAL, write_text

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
CLASSES = "classes.txt"
"""The names of the labels 0, 1, ..., one a line, where classes have names."""
SKIPPED = "skipped.tsv"
"""Images that could not be read, and why; the run replaced them."""
RESTARTS = "restarts.jsonl"
"""One line each time that the run was started again after a failure."""
MLFLOW = "mlflow.json"
"""Where the run is in MLflow; this file is in the run's folder only."""
CHECKPOINTS = "checkpoints"
META = "checkpoint.json"
"""The file that makes a folder a checkpoint."""
BAD = "BAD"
"""File in a checkpoint that must not be resumed; it holds the reason. Whoever removes it allows
that again."""
TRACES = "traces"
RECORD = (CONFIG, ENVIRONMENT, SUMMARY, METRICS)
"""The files that a study is read from: MLflow keeps them, and a shipped run consists of them."""


@dataclass(frozen=True)
class RunFolder:
    """A folder with the files of one run, any of which may be missing."""

    path: Path

    def has(self, name: str) -> bool:
        return os.path.exists(self.path / name)

    @property
    def config(self) -> Config | None:
        """The config as the run resolved it. Raises UserError if another version wrote it."""
        return load_resolved(self.path / CONFIG) if self.has(CONFIG) else None

    @property
    def environment(self) -> dict[str, Any]:
        """Facts about machine and versions that the run recorded; empty without any."""
        return self._json(ENVIRONMENT) or {}

    @property
    def device(self) -> str | None:
        """The kind of device that the run began on, cpu or cuda; None if it does not say so."""
        return self.environment.get("device")

    @property
    def ranks(self) -> int | None:
        """The number of ranks that the run was last started on; None if it does not say so."""
        return self.environment.get("ranks")

    @property
    def summary(self) -> RunSummary | None:
        return self.read_summary() if self.has(SUMMARY) else None

    @property
    def mlflow_run_id(self) -> str | None:
        """The run's id in MLflow; None if it is not there."""
        found = self._json(MLFLOW)
        return found["run_id"] if found else None

    def points(self) -> list[dict[str, Any]]:
        """The lines of metrics: `step`, `time` in seconds since 1970, and `metrics` by name."""
        if not self.has(METRICS):
            return []
        lines = (self.path / METRICS).read_text(encoding="utf-8").splitlines()
        # pydantic's parser is four times as fast as json's, and a study may have 100 MB.
        points = [from_json(line) for line in lines[:-1]]
        with suppress(ValueError):  # the last line is truncated if the disk was full
            points += map(from_json, lines[-1:])
        return points

    @property
    def has_trained(self) -> bool:
        """Whether windows of the run were trained, as far as it was recorded: there is a line of
        metrics, or a checkpoint, whole or not."""
        metrics, saved = self.path / METRICS, self.path / CHECKPOINTS
        return (self.has(METRICS) and metrics.stat().st_size > 0) or any(saved.glob("*"))

    def checkpoint(self, window: int) -> Path:
        """The folder of the checkpoint after `window` windows."""
        return self.path / CHECKPOINTS / f"{window:09d}"

    def checkpoints(self) -> list[int]:
        """Windows of its complete checkpoints that are not marked bad, the oldest first. Does not
        compare checksums."""
        places = [path for path in (self.path / CHECKPOINTS).glob("*") if path.name.isdecimal()]
        return sorted(
            int(path.name)
            for path in places
            if os.path.exists(path / META) and not os.path.exists(path / BAD)
        )

    def read_summary(self) -> RunSummary:
        """The summary. Raises OSError if there is none."""
        text = (self.path / SUMMARY).read_text(encoding="utf-8")
        return RunSummary.model_validate_json(text)

    def write_summary(self, summary: RunSummary) -> Path:
        """Writes a second file, then renames it: a reader sees the whole summary or none."""
        partial = self.path / f"{SUMMARY}.partial"
        partial.write_text(summary.model_dump_json(indent=2), encoding="utf-8")
        return partial.replace(self.path / SUMMARY)

    def write_config(self, config: Config) -> None:
        """Writes the config. Raises FileExistsError if there is one: of two runs in a folder, only
        one starts."""
        with (self.path / CONFIG).open("x", encoding="utf-8") as file:
            file.write(masked(config.to_yaml()))

    def rewrite_config(self, config: Config) -> None:
        """Replaces the config of a run that goes on."""
        write_text(self.path / CONFIG, masked(config.to_yaml()))

    def write_environment(self, facts: dict[str, Any]) -> None:
        text = json.dumps(facts, indent=2, default=str)
        write_text(self.path / ENVIRONMENT, masked(text))

    def open_metrics(self) -> IO[str]:
        """Opens an empty file of metrics, which is flushed after each line."""
        return (self.path / METRICS).open("w", buffering=1, encoding="utf-8")

    def cut_metrics(self, window: int) -> list[dict[str, Any]]:
        """Leaves out all lines of metrics of later windows, which will be trained again, and those
        of an end; returns the rest."""
        kept = [
            point
            for point in self.points()
            if point["step"] <= window and not any(map(_of_an_end, point["metrics"]))
        ]
        partial = self.path / f"{METRICS}.partial"
        partial.write_text("".join(f"{json.dumps(each)}\n" for each in kept), encoding="utf-8")
        partial.replace(self.path / METRICS)
        return kept

    def append_metrics(self) -> IO[str]:
        """Opens the file of metrics at its end."""
        return (self.path / METRICS).open("a", buffering=1, encoding="utf-8")

    def began(self) -> float:
        """When the run first began, in seconds since 1970."""
        return (self.path / CONFIG).stat().st_mtime

    def restarts(self) -> list[dict[str, Any]]:
        """The lines of restarts. One that is truncated, because a host or a disk failed, is left
        out."""
        if not self.has(RESTARTS):
            return []
        found = []
        for line in (self.path / RESTARTS).read_text("utf-8", errors="replace").splitlines():
            with suppress(ValueError):
                found.append(from_json(line))
        return found

    def add_restart(self, line: str) -> None:
        """Adds a line, on a line of its own also behind a truncated one."""
        path = self.path / RESTARTS
        whole = not self.has(RESTARTS) or path.read_bytes()[-1:] in (b"", b"\n")
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n" if whole else f"\n{line}\n")

    def write_classes(self, names: Sequence[str]) -> Path:
        path = self.path / CLASSES
        path.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
        return path

    def write_skipped(self, skipped: Sequence[tuple[str, str]]) -> Path:
        """Writes places of images with the reasons."""
        path = self.path / SKIPPED
        path.write_text("".join(f"{place}\t{why}\n" for place, why in skipped), encoding="utf-8")
        return path

    def write_mlflow(self, where: dict[str, str]) -> None:
        """Writes where the run is in MLflow; `where` must have a `run_id`."""
        write_text(self.path / MLFLOW, json.dumps(where, indent=2))

    def unmake(self) -> None:
        """Removes the files of a run that could not start."""
        for name in (CONFIG, ENVIRONMENT, METRICS, CLASSES, MLFLOW):
            for each in (name, name + PARTIAL):
                (self.path / each).unlink(missing_ok=True)

    def _json(self, name: str) -> dict[str, Any] | None:
        if not self.has(name):
            return None
        found: dict[str, Any] = json.loads((self.path / name).read_text(encoding="utf-8"))
        return found


def _of_an_end(name: str) -> bool:
    return name.startswith("summary/")
