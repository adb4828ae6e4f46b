"""Ranks are killed in the middle of a training: it goes on, and ends as if nothing had happened."""

import json
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.horovodrun import horovodrun
from tests.tracking.test_only_one import held_by_another
from tests.waiting import wait_for

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENT = """
name: disturbed
seed: 3
data: {dataset: synthetic, num_classes: 13, image_size: 8, synthetic_images: 64}
backbone: {feature_dim: 6}
classifier: {layout: world}
exchange: {kind: delayed, delay: 1, compression: int8}
optimizer: {lr: 0.05, warmup_windows: 2}
train: {batch_size: 4, steps: 360, save: true, log_every: 10, matmul_seconds: 0,
        checkpoint_every: 60, evaluate_every: 60, keep_checkpoints: 2}
tracking: {uri: 'sqlite:///FOLDER/mlflow.db', folder: FOLDER, system_metrics_seconds: 0}
"""
STEPS, LAST = 360, "000000360"


@dataclass
class Launched:
    """A `harness launch` of two ranks, on two emulated nodes."""

    root: Path
    process: "subprocess.Popen[str]"

    @classmethod
    def start(cls, root: Path, *changes: str, restarts: int = 0) -> "Launched":
        """`changes`: settings, and further options of `launch`."""
        root.mkdir(exist_ok=True)
        file = root / "experiment.yaml"
        file.write_text(EXPERIMENT.replace("FOLDER", str(root)))
        command = [sys.executable, "-m", "harness", "launch", "--np", "2"]
        command += ["--hosts", "localhost:1,127.0.0.1:1", "--restarts", str(restarts)]
        command += ["--folder", str(root / "run"), str(file), *changes]
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        return cls(root, process)

    @property
    def folder(self) -> Path:
        return self.root / "run"

    def end(self) -> tuple[int, str]:
        """The exit code and what was printed."""
        try:
            said = self.process.communicate(timeout=400)[0]
        finally:
            self.process.kill()
        return self.process.returncode, said

    def rank(self, number: int) -> psutil.Process:
        """The process of a rank, once it trains."""
        found: list[psutil.Process] = []

        def look() -> bool:
            found[:] = [each for each in psutil.process_iter() if self._is(each, number)]
            return bool(found)

        wait_for(look)
        return found[0]

    def _is(self, process: psutil.Process, number: int) -> bool:
        try:
            words = process.cmdline()
            own = str(self.folder) in words and "-m" in words and words[2] == "harness"
            return own and process.environ().get("HOROVOD_RANK") == str(number)
        except (psutil.NoSuchProcess, psutil.AccessDenied, IndexError):
            return False

    def kill_after(self, window: int, rank: int = 1) -> None:
        """Kills a rank once a checkpoint of this window is there."""
        place = self.folder / "checkpoints" / f"{window:09d}"
        wait_for(lambda: place.exists() or self.process.poll() is not None)
        self.rank(rank).send_signal(signal.SIGKILL)

    def checksums(self, name: str = LAST) -> dict[str, str]:
        meta = json.loads((self.folder / "checkpoints" / name / "checkpoint.json").read_text())
        return {file: stored["sha256"] for file, stored in meta["files"].items()}

    def losses(self) -> list[tuple[int, float]]:
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        points = [json.loads(line) for line in lines]
        return [
            (point["step"], point["metrics"]["train/loss"])
            for point in points
            if "train/loss" in point["metrics"]
        ]

    @property
    def summary(self) -> dict[str, object]:
        found: dict[str, object] = json.loads((self.folder / "summary.json").read_text())
        return found

    def in_store(self) -> "tuple[Counter[int], dict[str, str], str]":
        """How often MLflow has the loss of each step, the tags and the status of the only run."""
        from mlflow import MlflowClient

        client = MlflowClient(f"sqlite:///{self.root}/mlflow.db")
        ids = [each.experiment_id for each in client.search_experiments()]
        (run,) = client.search_runs(ids)
        points = client.get_metric_history(run.info.run_id, "train/loss")
        return Counter(point.step for point in points), run.data.tags, run.info.status


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Launched:
    launched = Launched.start(tmp_path_factory.mktemp("restarts") / "whole")
    code, said = launched.end()
    assert code == 0, said
    return launched


@pytest.mark.timeout(900)
def test_a_run_whose_ranks_are_killed_ends_as_the_undisturbed_one(
    whole: Launched, tmp_path: Path
) -> None:
    launched = Launched.start(tmp_path / "killed", restarts=3)
    launched.kill_after(60)
    wait_for(lambda: (launched.folder / "restarts.jsonl").exists())
    launched.kill_after(180, rank=0)
    code, said = launched.end()
    assert code == 0, said
    assert said.count("was killed by SIGKILL") == 2
    assert "restart 1 of 3 from the checkpoint after" in said
    assert launched.checksums() == whole.checksums()
    kept = {path.name for path in (launched.folder / "checkpoints").iterdir()}
    assert kept == {"000000300", LAST}
    assert launched.losses() == whole.losses()
    assert [step for step, _ in launched.losses()] == list(range(10, STEPS + 1, 10))
    summary = launched.summary
    assert summary["restarts"] == 2
    assert isinstance(summary["lost_seconds"], float)
    assert summary["lost_seconds"] > 0
    assert summary["evaluations"] != []
    often, tags, status = launched.in_store()
    assert often == dict.fromkeys(range(10, STEPS + 1, 10), 1)
    assert tags["restarts"] == "2"
    assert status == "FINISHED"


@pytest.mark.timeout(900)
def test_a_run_that_fails_without_progress_is_given_up(tmp_path: Path) -> None:
    """Its learning rate lets it diverge before the first checkpoint, each time."""
    launched = Launched.start(tmp_path / "hopeless", "optimizer.lr=1000", restarts=9)
    code, said = launched.end()
    assert code == 1
    assert said.count("harness: restart ") == 2
    assert "not started again: no checkpoint was written between 3 failures" in said
    assert not list(launched.folder.glob("checkpoints/*/checkpoint.json"))


def test_a_mistake_is_not_tried_again(tmp_path: Path) -> None:
    launched = Launched.start(tmp_path / "mistake", "train.resume=/nowhere", restarts=9)
    code, said = launched.end()
    assert code == 2
    assert "harness: restart" not in said


@pytest.mark.timeout(900)
def test_after_a_schedulers_warning_a_run_goes_on_as_the_undisturbed_one(
    whole: Launched, tmp_path: Path
) -> None:
    """It ends at a planned checkpoint, because one comes in time."""
    launched = Launched.start(tmp_path / "warned", "launch.grace_seconds=100", restarts=3)
    place = launched.folder / "checkpoints" / "000000060"
    wait_for(lambda: place.exists() or launched.process.poll() is not None)
    launched.process.send_signal(signal.SIGTERM)
    code, said = launched.end()
    assert code == 3, said
    assert "harness: restart" not in said
    names = sorted(path.name for path in place.parent.iterdir())
    window = int(names[-1])
    assert window in range(120, STEPS, 60)
    assert f"ended early after {window} of {STEPS} windows, as asked" in said
    assert set(launched.checksums(names[-1])) == set(launched.checksums(names[0]))
    assert launched.in_store()[2] == "KILLED"
    again = Launched.start(launched.root, "--continue")
    code, said = again.end()
    assert code == 0, said
    assert again.checksums() == whole.checksums()
    assert again.losses() == whole.losses()


@pytest.mark.timeout(900)
def test_a_run_that_failed_after_its_last_checkpoint_concludes_and_then_has_ended(
    tmp_path: Path,
) -> None:
    short = ("train.steps=60",)
    launched = Launched.start(tmp_path / "late", *short)
    code, said = launched.end()
    assert code == 0, said
    final = launched.summary["evaluations"]
    (launched.folder / "summary.json").unlink()
    again = Launched.start(launched.root, *short, "--continue")
    code, said = again.end()
    assert code == 0, said
    assert again.summary["evaluations"] == final
    assert again.summary["restarts"] == 1
    assert [step for step, _ in again.losses()] == list(range(10, 61, 10))
    assert again.in_store()[2] == "FINISHED"
    code, said = Launched.start(launched.root, *short, "--continue").end()
    assert (code, said) == (
        0,
        f"harness: the run in {launched.folder} has ended, after 60 windows\n",
    )
    code, said = Launched.start(launched.root, "train.steps=70", "--continue").end()
    assert code == 2
    assert "has train.steps=60, and here it is 70" in said
    assert again.summary["restarts"] == 1
    experiment = str(launched.root / "experiment.yaml")
    goes_on = ("--folder", str(launched.folder), "--continue")
    trained = horovodrun(
        ["-m", "harness", "train", experiment, *short, *goes_on],
        np=2,
        hosts="localhost:1,127.0.0.1:1",
    )
    assert trained.output.count("has ended, after 60 windows") == 1


def test_a_run_that_is_being_trained_is_not_continued_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "beside" / "run"
    folder.mkdir(parents=True)
    with held_by_another(folder) as other:
        code, said = Launched.start(folder.parent, "train.steps=20", "--continue").end()
    assert code == 2
    assert f"is being trained by process {other.pid} on " in said
    assert not (folder / "config.yaml").exists()
