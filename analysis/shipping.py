"""Prepares a store for the repository: small, relocatable, and without traces of its machine."""

import json
import re
import shutil
import socket
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from harness.tracking.comparison_files import TABLE_FILE
from harness.tracking.prediction import PREDICTIONS_FILE
from harness.tracking.run_folder import CONFIG, ENVIRONMENT, METRICS, RECORD, SUMMARY

KEPT_FILES = (*RECORD, TABLE_FILE, PREDICTIONS_FILE)
DROPPED = (
    "time/%",
    "time_min/%",
    "time_max/%",
    "traffic/%",
    "utilisation/%",
    "throughput%per_rank",
    "optimizer/%",
    "train/top1",
    "staleness/applied_delay",
    "process/%",
    "val/%top5",
    "val/%loss",
)
"""Metrics removed from the database. The notebooks read them from metrics.jsonl, where a line takes
a tenth of the bytes of a database row."""
KEPT_GAUGES = "%utilization_percentage"
"""System metrics that are kept, because they are stored nowhere else."""
MACHINE_TAGS = ("mlflow.user", "process", "folder")
NEUTRAL = {"tracking.uri": "None", "tracking.folder": "runs"}
FORGOTTEN = ("host", "hosts", "system", "variables")
"""Keys removed from environment.json."""
PATHS = (rb"/(?:home|root|tmp|work|Users)/", rb"file://")
"""Beginnings of paths on a machine."""
MOST_BYTES = 3_000_000


class NotFit(Exception):
    """The store cannot be shipped; the message says why."""


def ship(store: Path, place: Path) -> str:
    """Copies a SQLite store and its artifacts to `place`, which is replaced.

    Returns a summary. Raises NotFit if the copy reveals its machine or is too large.
    """
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    copied = place / "mlflow.db"
    with sqlite3.connect(store) as source, sqlite3.connect(copied) as target:
        source.backup(target)
    runs = _neutral(copied)
    for run in runs:
        _copy_artifacts(store.parent / "mlartifacts" / run / "artifacts", place, run)
    size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    revealing = secrets_in(place, [str(store.parent), str(Path.cwd())])
    if revealing:
        raise NotFit(f"{place} reveals its machine: {', '.join(revealing[:8])}")
    if size > MOST_BYTES:
        raise NotFit(f"{place} takes {size / 1e6:.1f} MB, but the limit is {MOST_BYTES / 1e6:g} MB")
    return f"{place.name}: {len(runs)} run{'s' * (len(runs) != 1)}, {size / 1e6:.2f} MB"


def ship_study(study: Path, place: Path) -> str:
    """Copies the output of `harness compare --folder` to `place`, which is replaced.

    It keeps the page, the charts, and each run's config and summary. Returns a summary. Raises
    NotFit if the copy reveals its machine.
    """
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for path in study.glob("*.*"):
        if path.suffix in (".md", ".csv", ".png"):
            shutil.copy(path, place)
    runs = [path.parent for path in sorted(study.rglob(SUMMARY))]
    for run in runs:
        _copy_files(run, place / run.name, (CONFIG, SUMMARY))
    revealing = secrets_in(place, [str(study.parent), str(Path.cwd())])
    if revealing:
        raise NotFit(f"{place} reveals its machine: {', '.join(revealing[:8])}")
    return f"{place.name}: {len(runs)} run{'s' * (len(runs) != 1)}"


def secrets_in(place: Path, words: list[str]) -> list[str]:
    """Files that contain one of the words, this machine's name, or a path on it."""
    own = [f'"{socket.gethostname()}"', str(Path.home()), *words]
    names = [re.escape(word.encode()) for word in own if word not in ('"localhost"', "/")]
    pattern = re.compile(b"|".join([*names, *PATHS]))
    found = []
    for path in sorted(place.rglob("*")):
        hit = pattern.search(path.read_bytes()) if path.is_file() else None
        if hit:
            found.append(f"{path.relative_to(place)} ({hit[0].decode(errors='replace')})")
    return found


def _neutral(file: Path) -> list[str]:
    """Removes names of places and people from the database; returns the ids of its runs."""
    base = sqlite3.connect(file)
    base.execute("UPDATE experiments SET artifact_location = 'mlartifacts'")
    base.execute("UPDATE runs SET artifact_uri = 'mlartifacts/' || run_uuid || '/artifacts'")
    base.execute("UPDATE runs SET user_id = ''")
    base.execute("DELETE FROM tags WHERE key IN (?, ?, ?)", MACHINE_TAGS)
    for key, value in NEUTRAL.items():
        base.execute("UPDATE params SET value = ? WHERE key = ?", (value, key))
    for pattern in DROPPED:
        base.execute("DELETE FROM metrics WHERE key LIKE ?", (pattern,))
    other = "key LIKE 'system/%' AND key NOT LIKE ?"
    for table in ("metrics", "latest_metrics"):
        base.execute(f"DELETE FROM {table} WHERE {other}", (KEPT_GAUGES,))
    base.commit()
    base.execute("PRAGMA page_size = 1024")  # each of MLflow's hundred empty tables takes a page
    base.execute("VACUUM")
    runs = [row[0] for row in base.execute("SELECT run_uuid FROM runs ORDER BY start_time")]
    base.close()
    return runs


def _copy_artifacts(source: Path, place: Path, run: str) -> None:
    _copy_files(source, place / "mlartifacts" / run / "artifacts", KEPT_FILES)


def _copy_files(source: Path, target: Path, names: Sequence[str]) -> None:
    target.mkdir(parents=True)
    for name in names:
        if not (source / name).exists():
            continue
        text = (source / name).read_text(encoding="utf-8")
        if name == CONFIG:
            values = yaml.safe_load(text)
            values["tracking"] |= {"uri": None, "folder": "runs"}
            text = yaml.safe_dump(values, sort_keys=False)
        if name == ENVIRONMENT:
            kept = {k: v for k, v in json.loads(text).items() if k not in FORGOTTEN}
            text = json.dumps(kept, indent=2)
        if name == METRICS:
            text = "".join(
                f"{json.dumps(_shorter(json.loads(line)))}\n" for line in text.splitlines()
            )
        (target / name).write_text(text, encoding="utf-8")


def _shorter(line: dict[str, Any]) -> dict[str, Any]:
    """The line with each metric rounded to six digits."""
    return line | {
        "metrics": {key: float(f"{value:.6g}") for key, value in line["metrics"].items()}
    }
