"""Runs that are not marked as ended: which are still running, and how the others are reported."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.cli import main
from harness.tracking.connection import connect, open_experiment
from harness.tracking.signs_of_life import Process
from harness.tracking.study import read_study
from tests.stores import new_store
from tests.tracking.test_study import train

DEAD = replace(Process.own(), ticks="1").text()
FAR = Process("far", "boot", "pid:[1]", 1, "1").text()
SIGNS: dict[str, dict[str, Any]] = {
    "killed": {"process": DEAD, "age": 3},
    "rebooted": {"process": FAR, "age": 4000},
    "of_old": {"process": None, "age": 4000},
    "of_old_with_metrics": {"process": None, "age": 4000, "metric": 1},
    "far": {"process": FAR, "age": 60},
    "here": {"process": Process.own().text(), "age": 9000},
}
GO_ON = {"of_old_with_metrics", "far", "here"}


def leave_running(uri: str, variant: str, sign: dict[str, Any]) -> None:
    client, now = connect(uri), time.time()
    tags = {"study": "which", "variant": variant, "seed": "0"}
    if sign["process"]:
        tags |= {"process": sign["process"], "heartbeat": str(int(now - sign["age"]))}
    place = open_experiment(client, uri, "harness")
    started = int(1000 * (now - 10_000))
    run = client.create_run(place, start_time=started, tags=tags).info.run_id
    metric = sign.get("metric", 9_000)
    client.log_metric(run, "train/loss", 1.0, timestamp=int(1000 * (now - metric)), step=1)


def test_runs_that_ended_without_a_word_have_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = new_store(tmp_path)
    for variant, sign in SIGNS.items():
        leave_running(uri, variant, sign)
    study = read_study(uri, "which")
    assert {run.name for run in study.runs if run.running} == GO_ON
    for variant in study.variants:
        assert variant.running == (variant.name in GO_ON), variant.name
        assert len(variant.failures) == (variant.name not in GO_ON), variant.name
    assert main(["compare", "--from-study", "which"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "no run of the study which completed" in line
    assert (
        "3 of 6 runs count as failed: killed seed 0 (ended silently, last sign of life at " in line
    )
    assert (
        "3 of 6 runs are still running: of_old_with_metrics seed 0, far seed 0, here seed 0" in line
    )
    # They are also reported next to successful runs.
    train(tmp_path / "mlflow.db", "fast", 0)
    assert main(["compare", "--from-study", "which", "--no-record"]) == 0
    assert "3 of 7 runs count as failed: killed" in capfd.readouterr().err


def test_a_run_whose_store_was_away_at_its_end_is_read_from_its_folder(tmp_path: Path) -> None:
    uri = new_store(tmp_path)
    train(tmp_path / "mlflow.db", "fast", 0)
    client = connect(uri)
    (run,) = read_study(uri, "which").runs
    client.update_run(run.run_id, "RUNNING")
    for name in ("summary.json", "metrics.jsonl"):
        (run.folder / name).unlink()
    (again,) = read_study(uri, "which").runs
    assert again.status == "RUNNING"
    assert again.summary is not None
    assert len(again.history) == 2
