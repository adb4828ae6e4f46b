"""The shipped store is small, silent about its machine, and whole; so is what `ship` makes."""

import json
import sqlite3
from pathlib import Path

import pytest

from analysis.run import HERE
from analysis.shipping import MOST_BYTES, NotFit, secrets_in, ship
from harness.config import Config
from harness.tracking.run_folder import RunFolder
from harness.tracking.study import read_study
from harness.tracking.tracker import Tracker
from tests.recorded import summary

STORE = HERE / "store"
SHIPPED = f"sqlite:///{STORE / 'mlflow.db'}"


def trained(folder: Path) -> Path:
    """A store with one run, as training leaves it."""
    file = folder / "mlflow.db"
    tracking = {"uri": f"sqlite:///{file}", "study": "which", "folder": str(folder)}
    values = {"name": "a", "train": {"steps": 300}, "tracking": tracking}
    place = folder / "run"
    place.mkdir()
    tracker = Tracker.start(Config.model_validate(values), place, {"host": "somewhere", "cores": 2})
    tracker.log(10, {"train/loss": 2.0, "time/step_ms": 7.0, "system/node_0/disk_usage": 1.0})
    RunFolder(place).write_summary(summary("a"))
    tracker.artifact(place / "summary.json")
    tracker.finish("FINISHED")
    return file


def test_what_is_shipped_is_whole_and_names_no_place(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    file = trained(tmp_path / "made")
    assert secrets_in(file.parent, [])
    shipped = tmp_path / "shipped"
    assert "1 run," in ship(file, shipped)
    (run,) = read_study(f"sqlite:///{shipped / 'mlflow.db'}", "which").runs
    assert run.summary == summary("a")
    assert run.folder.is_relative_to(shipped)
    assert run.history.loc[10, "time/step_ms"] == 7.0
    assert json.loads((run.folder / "environment.json").read_text()) == {"cores": 2}
    with sqlite3.connect(shipped / "mlflow.db") as base:
        assert base.execute("SELECT DISTINCT key FROM metrics").fetchall() == [("train/loss",)]
    text = str(tmp_path).encode()
    assert not [path for path in shipped.rglob("*") if path.is_file() and text in path.read_bytes()]


def test_what_tells_of_its_machine_is_not_shipped(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    file = trained(tmp_path / "made")
    with sqlite3.connect(file) as base:
        base.execute("UPDATE params SET value = '/home/someone/images' WHERE key = 'data.root'")
    with pytest.raises(NotFit, match=r"mlflow.db \(/home/\)"):
        ship(file, tmp_path / "shipped")


def test_the_shipped_store_is_fit() -> None:
    assert secrets_in(STORE, []) == []
    assert sum(path.stat().st_size for path in STORE.rglob("*") if path.is_file()) <= MOST_BYTES
    for study in ("recorded", "staleness"):
        for run in read_study(SHIPPED, study).runs:
            assert run.status == "FINISHED"
            assert len(run.history) >= 10
            assert run.summary is not None


def test_the_shipped_study_has_a_baseline_and_seeds() -> None:
    variants = read_study(SHIPPED, "recorded").variants
    assert "data_parallel" in [variant.name for variant in variants]
    assert len(variants) >= 4
    assert {len(variant.summaries) for variant in variants} == {3}
