"""A rank is killed while checkpoints are written; what is resumed ends as the undisturbed run."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.horovodrun import Result, horovodrun

EXPERIMENT = """
name: THIS
seed: 3
data: {dataset: synthetic, num_classes: 13, image_size: 8, synthetic_images: 64}
backbone: {feature_dim: 6}
classifier: {layout: world}
exchange: {kind: delayed, delay: 1, compression: int8}
optimizer: {lr: 0.05, warmup_windows: 2}
train: {batch_size: 4, steps: 6, precision: bf16, save: true, log_every: 1, matmul_seconds: 0}
tracking: {enabled: false, folder: 'ROOT/${oc.env:HOROVOD_HOSTNAME}'}
"""
HOSTS = ("localhost", "127.0.0.1")
EVERY, LAST, KILLED_AT = 2, 6, 4


@dataclass(frozen=True)
class Runs:
    root: Path

    def start(self, name: str, *changes: str, program: tuple[str, ...] = ("harness",)) -> Result:
        file = self.root / f"{name}.yaml"
        file.write_text(EXPERIMENT.replace("THIS", name).replace("ROOT", str(self.root)))
        changes = (f"train.checkpoint_every={EVERY}", "train.keep_checkpoints=2", *changes)
        return horovodrun(
            ["-m", *program, "train", str(file), *changes],
            np=2,
            hosts="localhost:1,127.0.0.1:1",
            check=program == ("harness",),
        )

    def folder(self, name: str, host: str = HOSTS[0]) -> Path:
        """The run's folder on a host, which has its own."""
        (found,) = (self.root / host).glob(f"{name}-*")
        return found

    def checkpoints(self, name: str, host: str) -> set[str]:
        return {path.name for path in (self.folder(name, host) / "checkpoints").iterdir()}

    def last(self, name: str, host: str) -> dict[str, str]:
        """The checksums of the files of the last checkpoint."""
        folder = self.folder(name, host) / "checkpoints" / f"{LAST:09d}"
        meta = json.loads((folder / "checkpoint.json").read_text())
        return {file: stored["sha256"] for file, stored in meta["files"].items()}

    def losses(self, name: str) -> dict[int, float]:
        lines = (self.folder(name) / "metrics.jsonl").read_text().splitlines()
        points = [json.loads(line) for line in lines]
        return {
            point["step"]: point["metrics"]["train/loss"]
            for point in points
            if "train/loss" in point["metrics"]
        }


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    found = Runs(tmp_path_factory.mktemp("killed"))
    found.start("whole")
    killed = found.start("killed", program=("tests.train.killed_program", str(KILLED_AT)))
    assert killed.returncode != 0
    name = found.folder("killed").name
    resume = f"train.resume={found.root}/${{oc.env:HOROVOD_HOSTNAME}}/{name}"
    resumed = found.start("resumed", resume)
    said = "000000002; skipped 000000004.partial: it is incomplete"
    assert said in resumed.output
    return found


def test_a_rank_that_is_killed_leaves_no_checkpoint(runs: Runs) -> None:
    for host in HOSTS:
        assert runs.checkpoints("killed", host) == {"000000002", "000000004.partial"}


def test_the_resumed_run_is_the_undisturbed_one_to_the_bit(runs: Runs) -> None:
    """Values, statistics, momentum, and what the wire owes, on hosts that share no folder."""
    whole, resumed = (runs.losses(name) for name in ("whole", "resumed"))
    assert set(resumed) == {3, 4, 5, 6}
    assert resumed == {window: whole[window] for window in resumed}
    assert len(runs.last("whole", HOSTS[0])) == 3
    for host in HOSTS:
        assert runs.last("resumed", host) == runs.last("whole", HOSTS[0])
        assert runs.checkpoints("resumed", host) == {"000000004", "000000006"}
