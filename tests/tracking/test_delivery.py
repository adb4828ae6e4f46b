"""What a store or a disk refuses delays nothing else: values, files and the end are delivered
separately, and without secrets."""

import json
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from harness.config import Config
from harness.errors import UserError
from harness.tracking import delivery, outbox, signs_of_life
from harness.tracking.connection import connect, open_store
from harness.tracking.run_folder import RunFolder
from harness.tracking.study import read_study
from harness.tracking.tracker import Tracker
from harness.whole_files import PARTIAL
from tests.recorded import summary
from tests.stores import new_store
from tests.tracking.test_tracker import mlflow_server

SECRET = "pa55word"


def begin(uri: str, folder: Path, experiment: str = "harness", facts: Any = None) -> Tracker:
    folder.mkdir(exist_ok=True)
    tracking = {"uri": uri, "study": "which", "experiment": experiment}
    values = {"name": "t", "train": {"steps": 300}, "tracking": tracking}
    return Tracker.start(Config.model_validate(values), folder, facts or {})


def steps_of(uri: str, run_id: str | None, name: str = "train/loss") -> list[int]:
    return [point.step for point in connect(uri).get_metric_history(str(run_id), name)]


def status_of(uri: str, run_id: str | None) -> str:
    return str(connect(uri).get_run(str(run_id)).info.status)


def names_of(uri: str, run_id: str | None) -> set[str]:
    return {file.path for file in connect(uri).list_artifacts(str(run_id))}


def test_artifacts_that_cannot_be_written_hold_up_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As if a server's artifact root were a path on its own machine."""
    uri = new_store(tmp_path)
    connect(uri).create_experiment("remote", artifact_location="file:///proc/nowhere/artifacts")
    folder = tmp_path / "run"
    tracker = begin(uri, folder, "remote")
    for step in range(400):
        tracker.log(step, {"train/loss": 1.0})
    RunFolder(folder).write_summary(summary("t"))
    tracker.artifact(folder / "summary.json")
    tracker.finish("FINISHED")
    assert status_of(uri, tracker.run_id) == "FINISHED"
    assert steps_of(uri, tracker.run_id) == list(range(400))
    (told,) = [record.getMessage() for record in caplog.records]
    assert "does not accept this run's config.yaml" in told
    assert str(folder) in told
    # What the store did not accept is read from the folder.
    study = read_study(uri, "which")
    assert [run.summary for run in study.runs] == [summary("t")]
    assert len(study.runs[0].history) == 400
    # Elsewhere it cannot be read: the line tells that the run FINISHED, and where its files are.
    (folder / "mlflow.json").write_text(json.dumps({"run_id": "another"}))
    (run,) = read_study(uri, "which").runs
    assert run.failure is not None
    assert f"its summary did not reach the store: it is kept in {folder} on" in run.failure


def test_a_file_that_fails_is_sent_again_and_one_that_is_not_there_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    send, tried = MlflowClient.log_artifact, list[str]()

    def no_leave_at_first(client: MlflowClient, run_id: str, path: str, folder: str | None) -> None:
        tried.append(Path(path).name)
        if tried.count("config.yaml") == 1 and path.endswith("config.yaml"):
            raise PermissionError(13, "Permission denied", path)
        send(client, run_id, path, folder)

    monkeypatch.setattr(MlflowClient, "log_artifact", no_leave_at_first)
    uri = new_store(tmp_path)
    tracker = begin(uri, tmp_path / "run")
    tracker.artifact(tmp_path / "none.txt")
    tracker.finish("FINISHED")
    assert names_of(uri, tracker.run_id) == {"config.yaml", "environment.json", "metrics.jsonl"}
    assert tried.count("config.yaml") == 2
    assert "none.txt" not in tried
    assert status_of(uri, tracker.run_id) == "FINISHED"


def test_a_value_that_is_refused_takes_no_other_along(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uri = new_store(tmp_path)
    tracker = begin(uri, tmp_path / "run")
    for step in range(60):
        tracker.log(step, {"train/loss": 1.0} if step != 7 else {"no=name": 1.0})
        tracker.tag(f"warning/{step}", "x" * (9000 if step == 7 else 9))
    tracker.finish("FAILED")
    assert steps_of(uri, tracker.run_id) == [step for step in range(60) if step != 7]
    tags = connect(uri).get_run(str(tracker.run_id)).data.tags
    assert {f"warning/{step}" for step in range(60)} - tags.keys() <= {"warning/7"}
    assert status_of(uri, tracker.run_id) == "FAILED"
    assert sum("does not accept this run's" in each.getMessage() for each in caplog.records) == 1


def test_the_end_is_written_though_no_value_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise MlflowException("INTERNAL_ERROR: the table of metrics is gone")

    uri = new_store(tmp_path)
    tracker = begin(uri, tmp_path / "run")
    monkeypatch.setattr(MlflowClient, "log_batch", refuse)
    monkeypatch.setattr(MlflowClient, "log_artifact", refuse)
    tracker.log(1, {"train/loss": 1.0})
    tracker.finish("KILLED")
    assert status_of(uri, tracker.run_id) == "KILLED"


def test_the_end_waits_for_a_store_that_another_process_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "FINISH_SECONDS", 1.0)
    uri = new_store(tmp_path)
    tracker = begin(uri, tmp_path / "run")
    time.sleep(1.0)
    with closing(sqlite3.connect(tmp_path / "mlflow.db", check_same_thread=False)) as base:
        base.isolation_level = None
        base.execute("begin immediate")
        threading.Timer(4.0, base.rollback).start()
        tracker.finish("FINISHED")
    assert status_of(uri, tracker.run_id) == "FINISHED"


def test_a_full_disk_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    uri = new_store(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.jsonl").symlink_to("/dev/full")
    tracker = begin(uri, folder)
    for step in range(3):
        tracker.log(step, {"train/loss": 1.0})
    tracker.finish("FINISHED")
    assert steps_of(uri, tracker.run_id) == [0, 1, 2]
    run = connect(uri).get_run(str(tracker.run_id))
    assert run.info.status == "FINISHED"
    assert "No space left on device" in run.data.tags["warning/metrics_file"]
    told = [each.getMessage() for each in caplog.records if "cannot write" in each.getMessage()]
    assert len(told) == 1
    assert "training goes on, and its metrics go on to MLflow" in told[0]


@pytest.mark.parametrize("file", ["environment.json", "mlflow.json"])
def test_a_disk_that_is_full_at_the_start_is_one_line(tmp_path: Path, file: str) -> None:
    uri = new_store(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / f"{file}{PARTIAL}").symlink_to("/dev/full")
    with pytest.raises(UserError, match="No space left on device"):
        begin(uri, folder)
    assert list(folder.iterdir()) == []
    statuses = [run.info.status for run in connect(uri).search_runs(["0", "1"])]
    assert statuses in ([], ["FAILED"])


def test_a_run_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signs_of_life, "BEAT_SECONDS", 0.0)
    monkeypatch.setattr(outbox, "DELIVER_SECONDS", 0.05)
    uri = new_store(tmp_path)
    tracker = begin(uri, tmp_path / "run")
    client = connect(uri)
    first = client.get_run(str(tracker.run_id)).data.tags
    assert signs_of_life.Process.parse(first["process"]) == signs_of_life.Process.own()
    end = time.monotonic() + 60
    while client.get_run(str(tracker.run_id)).data.tags["heartbeat"] == first["heartbeat"]:
        assert time.monotonic() < end
        time.sleep(0.1)
    tracker.finish("FINISHED")


def test_no_secret_of_a_servers_address_is_kept_or_printed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whether the store answers or not; a server keeps whatever it is sent."""
    with mlflow_server(tmp_path) as (uri, _):
        secret = uri.replace("//", f"//ann:{SECRET}@")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", secret)
        folder = tmp_path / "run"
        folder.mkdir()
        values = {"name": "t", "train": {"steps": 3}, "tracking": {"study": "which"}}
        facts = {"variables": {"NCCL_X": secret}}
        tracker = Tracker.start(Config.model_validate(values), folder, facts)
        tracker.log(1, {"train/loss": 1.0})
        tracker.finish("FINISHED")
        assert status_of(secret, tracker.run_id) == "FINISHED"
        assert steps_of(secret, tracker.run_id) == [1]
        assert read_study(secret, "which").runs[0].config.train.steps == 3
    with pytest.raises(UserError, match="does not answer") as away:
        open_store(secret)
    late = Tracker(None, None, delivery.Delivery(_away(secret), tmp_path), "none")
    late.log(1, {"train/loss": 1.0})
    late._metrics = folder / "metrics.jsonl"
    late.finish("FINISHED")
    said = capfd.readouterr()
    words = [str(away.value), said.out, said.err, caplog.text]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name for path in files} > {"config.yaml", "mlflow.json", "mlflow.db"}
    assert not [text for text in words if SECRET in text or "ann:" in text or "ann@" in text]
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]


def _away(uri: str) -> delivery.RunInStore:
    return delivery.RunInStore(connect(uri), "none", "shown")
