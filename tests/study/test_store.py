"""Studies read back from real stores, also from one that was moved since."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

from harness.config import Config
from harness.errors import UserError
from harness.measure.store import open_store
from harness.measure.tracking import Tracker
from harness.study.store import read_study
from tests.study.recorded import summary


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    open_store(f"sqlite:///{file}")
    return file


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> Path:
    place = tmp_path / "store"
    place.mkdir()
    return Path(shutil.copy(empty_store, place / "mlflow.db"))


def train(store: Path, name: str, seed: int, *, study: str = "which", ends: bool = True) -> None:
    """What a run of that name leaves in the store."""
    tracking = {"uri": f"sqlite:///{store}", "study": study}
    values = {"name": name, "seed": seed, "train": {"steps": 300}, "tracking": tracking}
    folder = store.parent / f"{name}-s{seed}-{study}"
    folder.mkdir(exist_ok=True)
    tracker = Tracker.start(Config.model_validate(values), folder, {})
    tracker.log(10, {"train/loss": 2.0})
    tracker.log(20, {"train/loss": 1.0, "time/step_ms": 7.0})
    if ends:
        tracker.log(20, {"val/top1": 0.5})
        summary(name, seed=seed).write(folder)
        tracker.artifact(folder / "summary.json")
        tracker.log(0, {"summary/step_ms": 7.0})
    tracker.finish("FINISHED" if ends else "FAILED")


def test_a_study_comes_back_whole(store: Path) -> None:
    train(store, "fast", 1)
    train(store, "data_parallel", 0)
    train(store, "fast", 0)
    train(store, "data_parallel", 1, ends=False)
    train(store, "fast", 0, study="another")
    study = read_study(f"sqlite:///{store}", "which")

    assert study.experiment == "harness"
    assert [(run.name, run.seed) for run in study.runs] == [
        ("fast", 1),
        ("data_parallel", 0),
        ("fast", 0),
        ("data_parallel", 1),
    ]
    fast, base = study.variants
    assert fast.summaries == (summary("fast", seed=0), summary("fast", seed=1))
    assert base.failures == ("FAILED",)
    history = study["fast"][0].history
    assert list(history.index) == [10, 20]
    assert history.loc[20, "train/loss"] == 1.0
    assert history.loc[20, "val/top1"] == 0.5
    assert pd.isna(history.loc[10, "val/top1"])
    assert study["fast"][0].metric("val/top1").to_dict() == {20: 0.5}
    assert study["fast"][0].metric("val/loss").empty
    assert not [name for name in history if name.startswith("summary/")]


def test_a_run_repeated_counts_once_and_the_latest(store: Path) -> None:
    train(store, "fast", 0, ends=False)
    train(store, "fast", 0)
    (run,) = read_study(f"sqlite:///{store}", "which").runs
    assert run.status == "FINISHED"


def test_a_store_that_was_moved_has_its_artifacts_beside_it(store: Path) -> None:
    train(store, "fast", 0)
    moved = store.parent.rename(store.parent.parent / "moved") / "mlflow.db"
    (run,) = read_study(f"sqlite:///{moved}", "which").runs
    assert run.summary == summary("fast")


def test_what_is_not_there_is_said(store: Path) -> None:
    train(store, "fast", 0)
    with pytest.raises(UserError, match=r"no study 'what' in .*it knows which"):
        read_study(f"sqlite:///{store}", "what")
    with pytest.raises(UserError, match="there is no MLflow store"):
        read_study(f"sqlite:///{store.parent}/none.db", "which")
    assert not (store.parent / "none.db").exists()
