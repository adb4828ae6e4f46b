"""`harness launch` before it starts ranks: the line that it prints, and what it refuses."""

import subprocess
import sys
from pathlib import Path

import pytest

from harness.config import load
from harness.launch.launch import plan_launch
from harness.tracking.run_folder import RunFolder
from tests.horovodrun import ROOT

EXPERIMENT = """
name: small
data: {dataset: synthetic, num_classes: 3}
classifier: {layout: node}
train: {steps: 1}
"""


def launch(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "harness", "launch", "--dry-run", *arguments]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )


def test_a_program_is_started_on_every_slot() -> None:
    done = launch("-H", "localhost:2,127.0.0.1:1", "--", "python", "train.py", "--lr", "0.1", "a=b")
    assert done.returncode == 0
    assert done.stderr.count("\n") == 1
    assert "horovodrun --gloo -np 3 -H localhost:2,127.0.0.1:1 " in done.stderr
    assert done.stderr.endswith("--start-timeout 300 python train.py --lr 0.1 a=b\n")
    assert "--network-interfaces" not in done.stderr


def test_an_experiment_is_trained(tmp_path: Path) -> None:
    experiment = tmp_path / "small.yaml"
    experiment.write_text(EXPERIMENT)
    uri = "tracking.uri=http://me:s3cret@host:5000"
    done = launch("--np", "2", str(experiment), "optimizer.lr=0.1", uri)
    assert done.returncode == 0
    assert f"-m harness train {experiment} optimizer.lr=0.1 " in done.stderr
    assert "tracking.uri=http://host:5000" in done.stderr
    assert "s3cret" not in done.stderr
    assert list(tmp_path.iterdir()) == [experiment]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--np", "4"], "needs at least 4 classes for 4 ranks"),
        (["--np", "2", "optimizer.rate=1"], "optimizer.rate"),
        (["--np", "2", "--hosts", "localhost:1"], "--np 2 needs 2 slots"),
    ],
)
def test_what_cannot_run_is_told_in_a_line(arguments: list[str], told: str, tmp_path: Path) -> None:
    experiment = tmp_path / "small.yaml"
    experiment.write_text(EXPERIMENT)
    done = launch(str(experiment), *arguments)
    assert done.returncode == 2
    assert told in done.stderr
    assert done.stderr.count("\n") == 1


def test_horovod_wakes_less_often_only_where_ranks_outnumber_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("HOROVOD_CYCLE_TIME", raising=False)
    assert "HOROVOD_CYCLE_TIME" not in plan_launch(["true"], 1, "localhost:1").line()
    assert "HOROVOD_CYCLE_TIME" not in plan_launch(["true"], 1, "localhost:999").line()
    assert "HOROVOD_CYCLE_TIME" not in plan_launch(["true"], 999, "192.0.2.1:999").line()
    assert plan_launch(["true"], 999, "localhost:999").line().startswith("HOROVOD_CYCLE_TIME=10 ")


def test_a_run_with_other_settings_is_not_continued_and_no_rank_starts(tmp_path: Path) -> None:
    """What ranks say of a run that has trained windows would be tried again."""
    experiment, run = tmp_path / "small.yaml", tmp_path / "run"
    experiment.write_text(EXPERIMENT)
    run.mkdir()
    RunFolder(run).write_config(load(experiment))
    words = ["launch", "--folder", str(run), "--continue", str(experiment), "seed=9"]
    done = subprocess.run(
        [sys.executable, "-m", "harness", *words], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "has seed=0, and here it is 9; continue it with the same settings" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not run.with_name("run.log").exists()
