"""Studies are read from real stores, also from one that was moved."""

import shutil
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from harness.config import Config
from harness.errors import UserError
from harness.tracking.connection import connect, open_experiment
from harness.tracking.recorded import RecordedRun
from harness.tracking.run_folder import RunFolder
from harness.tracking.study import read_study
from harness.tracking.tracker import Tracker
from tests.recorded import summary


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> Path:
    place = tmp_path / "store"
    place.mkdir()
    return Path(shutil.copy(empty_store, place / "mlflow.db"))


def train(
    store: Path,
    name: str,
    seed: int,
    *,
    study: str = "which",
    ends: bool = True,
    status: str = "",
) -> None:
    """Writes into the store what a run of that name leaves there."""
    tracking = {"uri": f"sqlite:///{store}", "study": study}
    values = {"name": name, "seed": seed, "train": {"steps": 300}, "tracking": tracking}
    folder = store.parent / f"{name}-s{seed}-{study}-{time.time_ns()}"
    folder.mkdir()
    tracker = Tracker.start(Config.model_validate(values), folder, {})
    tracker.log(10, {"train/loss": 2.0})
    tracker.log(20, {"train/loss": 1.0, "time/step_ms": 7.0})
    if ends:
        tracker.log(20, {"val/top1": 0.5})
        RunFolder(folder).write_summary(summary(name, seed=seed))
        tracker.artifact(folder / "summary.json")
        tracker.log(0, {"summary/step_ms": 7.0})
    tracker.finish(status or ("FINISHED" if ends else "FAILED"))


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


def test_a_run_that_failed_behind_its_summary_has_no_result(store: Path) -> None:
    """The same as in the table that `compare` prints."""
    train(store, "fast", 0, status="FAILED")
    (fast,) = read_study(f"sqlite:///{store}", "which").variants
    assert (fast.summaries, fast.failures) == ((), ("FAILED",))


def test_a_line_that_the_disk_cut_is_left_out(tmp_path: Path) -> None:
    whole = '{"step": 1, "time": 2.0, "metrics": {"train/loss": 3.0}}\n'
    (tmp_path / "metrics.jsonl").write_text(whole + whole[:20])
    config = Config.model_validate({"train": {"steps": 1}})
    run = RecordedRun("1", config, "FAILED", None, tmp_path)
    assert run.metric("train/loss").to_dict() == {1: 3.0}


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
    with pytest.raises(UserError, match=r"no study 'what' in .*give one of which"):
        read_study(f"sqlite:///{store}", "what")
    with pytest.raises(UserError, match=r"no study 'wich' in .*; the nearest is which; give one"):
        read_study(f"sqlite:///{store}", "wich")
    with pytest.raises(UserError, match="there is no MLflow store"):
        read_study(f"sqlite:///{store.parent}/none.db", "which")
    assert not (store.parent / "none.db").exists()


def killed(store: Path, name: str, seed: int, *, config: dict[str, Any] | None = None) -> None:
    """A run that was killed before any file arrived: it has tags, and perhaps parameters."""
    client = connect(f"sqlite:///{store}")
    place = open_experiment(client, f"sqlite:///{store}", "harness")
    tags = {"study": "which", "variant": name, "seed": str(seed)}
    run_id = client.create_run(place, tags=tags).info.run_id
    if config is not None:
        for key, value in Config.model_validate(config).flattened().items():
            client.log_param(run_id, key, str(value))
    client.set_terminated(run_id, "KILLED")


def test_a_run_killed_before_its_files_arrived_has_failed(store: Path) -> None:
    killed(store, "data_parallel", 1)
    train(store, "data_parallel", 0)
    late = {"name": "late", "seed": 7, "exchange": {"kind": "delayed", "delay": 1}}
    killed(store, "late", 7, config=late | {"train": {"steps": 9}, "optimizer": {"lr": 0.3}})
    base, other = read_study(f"sqlite:///{store}", "which").variants
    assert base.failures == ("KILLED",)
    assert [run.seed for run in base.summaries] == [0]
    assert base.config.train.steps == 300  # of the run that has a config
    assert (other.name, other.failures) == ("late", ("KILLED",))
    assert other.config.exchange.delay == 1
    assert other.config.optimizer.lr == 0.3


def test_a_run_that_goes_on_is_running_not_failed(store: Path) -> None:
    train(store, "fast", 0)
    client = connect(f"sqlite:///{store}")
    place = client.get_experiment_by_name("harness")
    assert place is not None
    tags = {"study": "which", "variant": "fast", "seed": "1"}
    client.create_run(place.experiment_id, tags=tags)
    (fast,) = read_study(f"sqlite:///{store}", "which").variants
    assert (fast.failures, fast.running, len(fast.summaries)) == ((), 1, 1)


@pytest.mark.parametrize("name", ["bob's run", 'the "best"', """both ' and \"""", "50%; drop"])
def test_a_name_may_have_any_characters(name: str, store: Path) -> None:
    train(store, "fast", 0)
    with pytest.raises(UserError, match=r"no study .* give one of which"):
        read_study(f"sqlite:///{store}", name)
    train(store, "fast", 1, study=name)
    assert [run.seed for run in read_study(f"sqlite:///{store}", name).runs] == [1]


def test_a_store_that_fails_after_it_answered_is_one_line(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(store, "fast", 0)

    def refuse(*_: object, **__: object) -> None:
        raise MlflowException("the database is\nlocked")

    monkeypatch.setattr(MlflowClient, "search_runs", refuse)
    with pytest.raises(UserError, match=r"does not complete a request \(the database is locked\)"):
        read_study(f"sqlite:///{store}", "which")


def test_a_folder_of_somebody_elses_is_one_line(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Artifacts from elsewhere are downloaded into a shared folder, which may be another user's."""
    train(store, "fast", 0)
    shutil.rmtree(store.parent / "mlartifacts")

    def refuse(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(
        UserError, match=r"cannot keep artifacts in .*: Permission denied; set TMPDIR"
    ):
        read_study(f"sqlite:///{store}", "which")
