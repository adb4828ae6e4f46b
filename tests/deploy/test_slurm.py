"""deploy/slurm.sbatch with programs in the place of Slurm's: hosts, requeue, signals."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.config import load
from harness.launch.hosts import read_hosts
from tests.horovodrun import ROOT
from tests.waiting import wait_for

SCRIPT = ROOT / "deploy/slurm.sbatch"
SCONTROL = """#!/bin/sh
case "$1" in
    show) echo one; echo two ;;
    requeue) echo "$2" >> requeued ;;
esac
"""
HARNESS = """#!{python}
import signal, sys, time
open("given", "a").write("\\n".join(sys.argv[1:]) + "\\n")
def end(*_):
    open("ended", "w").write("saved")
    sys.exit({asked})
signal.signal(signal.SIGTERM, end)
open("started", "w").close()
time.sleep({seconds})
sys.exit({code})
"""


@dataclass(frozen=True)
class Place:
    folder: Path

    def start(
        self, *arguments: str, requeues: int = 0, seconds: float = 0, code: int = 0, asked: int = 3
    ) -> subprocess.Popen[str]:
        program = HARNESS.format(python=sys.executable, seconds=seconds, code=code, asked=asked)
        for name, text in (("scontrol", SCONTROL), ("harness", program)):
            (self.folder / "bin" / name).write_text(text)
            (self.folder / "bin" / name).chmod(0o755)
        slurm = {
            "SLURM_JOB_ID": "17",
            "SLURM_JOB_NODELIST": "one,two",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_NTASKS_PER_NODE": "4",
        }
        if requeues:
            slurm["SLURM_RESTART_COUNT"] = str(requeues)
        return subprocess.Popen(
            ["bash", str(SCRIPT), *arguments],
            cwd=self.folder,
            env={
                "PATH": f"{self.folder}/bin:{os.environ['PATH']}",
                "HARNESS": f"{self.folder}/bin/harness",
                **slurm,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def ended(self, *arguments: str, requeues: int = 0, code: int = 0) -> list[str]:
        """What the harness was given."""
        with self.start(*arguments, requeues=requeues, code=code) as process:
            output, _ = process.communicate(timeout=60)
        assert process.returncode == code, output
        return (self.folder / "given").read_text().splitlines()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    (tmp_path / "bin").mkdir()
    return Place(tmp_path)


EXPERIMENT = "experiments/glyphs/hybrid_averaging.yaml"


def test_it_starts_on_the_hosts_of_the_job(place: Place) -> None:
    given = place.ended(EXPERIMENT, "train.steps=50", "train.checkpoint_every=9")
    assert given[0] == "launch"
    assert given[given.index("--np") + 1] == "8"
    hosts = read_hosts(given[given.index("--hosts") + 1])
    assert [(host.name, host.slots) for host in hosts] == [("one", 4), ("two", 4)]
    assert given[given.index("--folder") + 1] == "runs/slurm-17"
    assert "--continue" in given
    settings = [each for each in given if "=" in each]
    config = load(ROOT / EXPERIMENT, settings)
    assert config.train.steps == 50
    assert config.train.checkpoint_every == 9
    assert config.train.save
    assert config.train.resume is None


def test_a_failure_is_the_jobs(place: Place) -> None:
    place.ended(EXPERIMENT, code=3)


def test_a_requeued_job_goes_on_with_the_same_line(place: Place) -> None:
    first = place.ended(EXPERIMENT, "train.steps=50")
    (place.folder / "given").unlink()
    assert place.ended(EXPERIMENT, "train.steps=50", requeues=2) == first


@pytest.mark.parametrize(("number", "requeued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_signals_end_the_ranks(place: Place, number: signal.Signals, requeued: bool) -> None:
    """When the time is over the script asks for more; after a preemption Slurm does so itself."""
    with place.start(EXPERIMENT, seconds=60) as process:
        for _ in range(600):
            if (place.folder / "started").exists():
                break
            time.sleep(0.05)
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
    assert (place.folder / "ended").read_text() == "saved", output
    assert (place.folder / "requeued").exists() == requeued
    if requeued:
        assert (place.folder / "requeued").read_text() == "17\n"
        assert process.returncode == 0
    else:
        assert process.returncode != 0


def test_a_training_that_completes_meanwhile_is_not_started_again(place: Place) -> None:
    with place.start(EXPERIMENT, seconds=60, asked=0) as process:
        wait_for((place.folder / "started").exists)
        process.send_signal(signal.SIGUSR1)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "the training is complete" in output
    assert not (place.folder / "requeued").exists()


def test_without_an_experiment(place: Place) -> None:
    with place.start() as process:
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert output.startswith("slurm.sbatch: name an experiment")
