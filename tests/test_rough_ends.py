"""Real runs that end roughly: where their words go, what their disk takes, who ends them."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from harness.tracing import gather
from tests.horovodrun import ROOT
from tests.stores import new_store

EXPERIMENT = """
name: rough
data: {dataset: synthetic, num_classes: 10, synthetic_images: 64, image_size: 8}
train: {batch_size: 4, steps: 12, untimed_windows: 2, log_every: 2, matmul_seconds: 0.0, threads: 1}
tracking: {system_metrics_seconds: 0}
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "run.yaml").write_text(EXPERIMENT)
    new_store(tmp_path)
    return tmp_path


def start(here: Path, words: str) -> "subprocess.Popen[bytes]":
    """By a shell, as users redirect; the exit code is the training's."""
    line = f'"{sys.executable}" -m harness train run.yaml --folder out {words}'
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    return subprocess.Popen(
        [
            "bash",
            "-c",
            f"set -o pipefail; exec {line}" if "|" not in words else f"set -o pipefail; {line}",
        ],
        cwd=here,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def statuses(here: Path) -> list[str]:
    with closing(sqlite3.connect(here / "mlflow.db")) as base:
        return [status for (status,) in base.execute("select status from runs")]


@pytest.mark.parametrize("words", ["2>&1 | head -1", ">&- 2>&-"])
def test_a_run_whose_words_go_nowhere_is_finished(here: Path, words: str) -> None:
    process = start(here, words)
    said, _ = process.communicate(timeout=250)
    assert process.returncode == 0, said
    assert b"Traceback" not in said
    assert statuses(here) == ["FINISHED"]
    assert (here / "out" / "summary.json").exists()


def test_a_run_whose_summary_has_no_room_has_failed_and_says_so_last(here: Path) -> None:
    (here / "out").mkdir()
    (here / "out" / "summary.json.partial").symlink_to("/dev/full")
    process = start(here, "")
    said, _ = process.communicate(timeout=250)
    assert process.returncode == 1
    assert b"Traceback" not in said
    assert b"images/s" in said, "what it came to is shown all the same"
    last = said.decode().strip().splitlines()[-1]
    assert last.startswith("harness: the training is complete, but its summary cannot be")
    assert "No space left on device" in last
    assert statuses(here) == ["FAILED"]


def test_a_run_whose_terminal_goes_away_unasked_is_called_killed(here: Path) -> None:
    process = start(here, "train.steps=100000")
    end = time.monotonic() + 200
    while not (here / "out" / "metrics.jsonl").exists():
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.1)
    time.sleep(1.0)
    process.send_signal(signal.SIGHUP)
    said, _ = process.communicate(timeout=100)
    assert process.returncode == 1
    assert b"harness: stopped" in said
    assert statuses(here) == ["KILLED"]


def test_a_trace_that_the_disk_does_not_take_is_left_out(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").symlink_to("/dev/full")
    (tmp_path / "file").touch()
    assert gather._written(tmp_path / "well", b"content") == [tmp_path / "well"]
    assert gather._written(tmp_path / "full", b"content") == []
    gather._make(tmp_path / "file")
    first, second = capfd.readouterr().err.splitlines()
    assert "full cannot be written (No space left on device); training goes on" in first
    assert "file cannot be written (File exists); training goes on" in second
