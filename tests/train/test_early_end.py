"""A training that is asked to end saves first; what goes on from there is the undisturbed run."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness import config
from harness.cli import main
from harness.config import load
from harness.signals import Noted, handled
from harness.train import run as running
from harness.train.early_end import EarlyEnd, EndedEarly
from harness.train.training import Training
from tests.alone import world_of_one
from tests.journals import Losses
from tests.train.checkpoint_program import made
from tests.train.test_checkpoint import checkpoint_at
from tests.waiting import wait_for

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENT = """
name: asked
seed: 3
data: {dataset: synthetic, num_classes: 13, image_size: 8, synthetic_images: 64}
backbone: {feature_dim: 6}
exchange: {kind: synchronous}
optimizer: {lr: 0.05, warmup_windows: 2}
train: {batch_size: 4, steps: 400, log_every: 10, matmul_seconds: 0, checkpoint_every: 100,
        save: true, threads: 1}
launch: {grace_seconds: 0}  # too short to wait for the next planned checkpoint
tracking: {enabled: false, folder: FOLDER}
"""


@dataclass(frozen=True)
class Asked:
    root: Path

    def start(self, *words: str) -> "subprocess.Popen[str]":
        file = self.root / "experiment.yaml"
        file.write_text(EXPERIMENT.replace("FOLDER", str(self.root)))
        command = [sys.executable, "-m", "harness", "train", str(file), *words]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)

    def run(self, *words: str) -> int:
        process = self.start(*words)
        process.communicate(timeout=200)
        return process.returncode

    def checksums(self, name: str) -> dict[str, str]:
        meta = self.root / name / "checkpoints" / "000000400" / "checkpoint.json"
        return {key: each["sha256"] for key, each in json.loads(meta.read_text())["files"].items()}

    def steps(self, name: str) -> list[int]:
        lines = (self.root / name / "metrics.jsonl").read_text().splitlines()
        points = [json.loads(line) for line in lines]
        return [point["step"] for point in points if "train/loss" in point["metrics"]]


@pytest.mark.timeout(600)
def test_what_goes_on_after_a_request_is_the_undisturbed_run(tmp_path: Path) -> None:
    asked = Asked(tmp_path)
    process = asked.start("--folder", str(tmp_path / "asked"))
    wait_for(lambda: (tmp_path / "asked" / "checkpoints" / "000000100").exists())
    process.send_signal(signal.SIGUSR1)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 3, errors
    said = errors.splitlines()[-1]
    assert said.startswith("harness: ended early after ")
    window = int(said.split()[4])
    assert 100 < window < 400
    assert (tmp_path / "asked" / "checkpoints" / f"{window:09d}" / "checkpoint.json").exists()

    assert asked.run("--folder", str(tmp_path / "asked"), "--continue") == 0
    assert asked.run("--folder", str(tmp_path / "whole"), "--continue") == 0
    assert asked.checksums("asked") == asked.checksums("whole")
    every = set(range(10, 401, 10))
    assert asked.steps("whole") == sorted(every)
    assert asked.steps("asked") == sorted(every | {window}), "what it measured before it ended"
    summary = json.loads((tmp_path / "asked" / "summary.json").read_text())
    assert summary["restarts"] == 1


@pytest.mark.timeout(600)
def test_another_run_is_not_continued(tmp_path: Path) -> None:
    asked = Asked(tmp_path)
    folder = ("--folder", str(tmp_path / "own"), "--continue")
    assert asked.run(*folder, "train.steps=3") == 0
    process = asked.start(*folder, "train.steps=3", "optimizer.lr=0.01")
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 2
    assert "has optimizer.lr=0.05, and here it is 0.01" in errors
    process = asked.start("--continue")
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 2
    assert "name it with --folder" in errors


@pytest.mark.parametrize(("seconds", "last"), [(0, 6), (9, 4)])
def test_the_time_of_grace_counts_from_the_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: int, last: int
) -> None:
    """Ten seconds may pass until the next planned checkpoint, two windows of one second away."""
    file = tmp_path / "experiment.yaml"
    file.write_text(EXPERIMENT.replace("FOLDER", str(tmp_path)))
    changes = ["train.checkpoint_every=3", "launch.grace_seconds=20"]
    asked = EarlyEnd()
    training = Training(made(load(file, changes), world_of_one()), tmp_path, early_end=asked)
    monkeypatch.setattr(training, "_began", time.monotonic() - 4, raising=False)
    monkeypatch.setattr(asked, "_asked_at", time.monotonic() - seconds)
    assert training._last_window(4) == last


def test_who_was_asked_to_end_does_not_evaluate_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It saves at the planned checkpoint of window 5; what goes on from there evaluates it."""
    file = tmp_path / "experiment.yaml"
    file.write_text(EXPERIMENT.replace("FOLDER", str(tmp_path)))
    changes = ["train.steps=10", "train.checkpoint_every=5", "train.evaluate_every=5"]
    changes += ["launch.grace_seconds=200"]
    asked, evaluate, evaluated = EarlyEnd(), Training.evaluate, list[int]()

    def noted(self: Training, limit: int = 0) -> dict[str, float]:
        evaluated.append(limit)
        return evaluate(self, limit)

    monkeypatch.setattr(Training, "evaluate", noted)
    monkeypatch.setattr(asked, "_asked_at", time.monotonic())
    training = Training(made(load(file, changes), world_of_one()), tmp_path, early_end=asked)
    with pytest.raises(EndedEarly, match="after 5 of 10 windows, as asked; it goes on with"):
        training.run(Losses())
    assert evaluated == []
    resume = f"train.resume={checkpoint_at(tmp_path, 5)}"
    again = Training(made(load(file, [*changes, resume]), world_of_one()), tmp_path / "again")
    assert [each.window for each in again.run(Losses()).evaluations] == [5, 10]


def test_a_request_counts_from_the_start_and_harms_nothing_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outside of the run it would end a rank that has just started, or one that tells its end."""
    file, taken, load_with_notes = tmp_path / "x.yaml", list[bool](), config.load_with_notes
    file.write_text(EXPERIMENT.replace("FOLDER", str(tmp_path)))

    def asked(*given: Any) -> config.Loaded:
        os.kill(os.getpid(), signal.SIGUSR1)
        return load_with_notes(*given)

    def run(*given: Any) -> None:
        taken.append(given[-1].asked)

    monkeypatch.setattr(config, "load_with_notes", asked)
    monkeypatch.setattr(running, "run", run)
    with handled([signal.SIGUSR1], Noted().arrives):  # otherwise it might end this process
        assert main(["train", str(file)]) == 0
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN
    assert taken == [True]


@pytest.mark.parametrize(("every", "code"), [(0, 1), (1, 3)])
def test_only_who_has_saved_can_go_on(every: int, code: int, tmp_path: Path) -> None:
    file = tmp_path / "experiment.yaml"
    file.write_text(EXPERIMENT.replace("FOLDER", str(tmp_path)))
    changes = [f"train.checkpoint_every={every}", f"train.save={every > 0}"]
    asked = EarlyEnd()
    asked._asked_at = time.monotonic()
    training = Training(made(load(file, changes), world_of_one()), tmp_path, early_end=asked)
    with pytest.raises(EndedEarly) as ended:
        training.run(Losses())
    assert ended.value.exit_code == code
