"""What a user gets wrong: one line, exit code 2, no traceback, and nothing left behind."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from harness.cli import main
from harness.config import DataConfig
from harness.data.open import open_dataset
from tests.horovodrun import ROOT, horovodrun

EXPERIMENT = """
name: bad
data: {dataset: synthetic, num_classes: 12, image_size: 8, synthetic_images: 64}
train: {batch_size: 4, steps: 2}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An otherwise empty working directory."""
    (tmp_path / "run.yaml").write_text(EXPERIMENT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"folder"
        for path in folder.rglob("*")
    }


def refused_by_a_process(here: Path, *arguments: str) -> str:
    """The one line it says."""
    before = content(here)
    ended = subprocess.run(
        [sys.executable, "-m", "harness", *arguments],
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert ended.returncode == 2, ended.stderr
    assert ended.stdout == ""
    assert content(here) == before, "something was left behind"
    (line,) = ended.stderr.splitlines()
    return line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "none.yaml"], "cannot read the experiment"),
        (["train", "run.yaml", "exchange.delay=1"], "set delay=0 or kind=delayed"),
        (["train", "run.yaml", "trace.windows=1", "trace.ranks=[1]"], "the run has ranks 0 to 0"),
        (["train", "run.yaml", "train.resume=none"], "train.resume=none is not a checkpoint"),
    ],
)
def test_a_process_says_one_line_and_nothing_else(
    here: Path, arguments: list[str], said: str
) -> None:
    line = refused_by_a_process(here, *arguments)
    assert line.startswith("harness: ")
    assert said in line


def test_a_corrupt_cache(here: Path) -> None:
    open_dataset(DataConfig(num_classes=12, image_size=8, cache="cache"))
    (first, *_) = (here / "cache").glob("*.bin")
    first.write_bytes(first.read_bytes()[:-1] + b"\x01")
    arguments = ["train", "run.yaml", "data.dataset=glyphs", "data.cache=cache"]
    line = refused_by_a_process(here, *arguments)
    assert "are damaged: its contents do not match its checksum; delete it and run again" in line


def refused(here: Path, capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The same without the seconds that a process takes to import torch."""
    before = content(here)
    assert main(arguments) == 2
    assert content(here) == before, "something was left behind"
    out, err = capfd.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("harness: ")
    return line


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.stepz=5"], "unknown key train.stepz; the nearest known key is train.steps"),
        (["train.steps=many"], "train.steps=many does not fit: give a whole number"),
        (["tracking.folder=~nobody-here/runs"], "this machine has no home folder ~nobody-here"),
        (
            ["train.epochs=.inf"],
            "train.epochs=.inf does not fit: give a number above 0 and at most",
        ),
        (
            ["classifier.sampling=0"],
            "classifier.sampling=0 does not fit: give a number above 0 and",
        ),
        (
            ["classifier.sampling=0.1", "exchange.compression=int8"],
            "exchange.compression=int8 sends what it leaves out of a gradient with a later one",
        ),
        (["seed=-1"], "seed=-1 does not fit: give a whole number from 0 to 9,223,372,036"),
        (["--epochs", "3"], "unrecognized arguments: --epochs 3; see harness train --help"),
        (["data.dataset=glyphs", "data.train_fonts=[none]"], "data.train_fonts names none"),
        (["data.dataset=image_folder"], "set data.root to it"),
        (["data.dataset=fashion_mnist", "data.root=none"], "data.root=none is not a folder"),
        (["data.recipe=imagenet"], "data.recipe=imagenet belongs to data.dataset=image_folder"),
        (["data.validation_size=64"], "data.validation_size=64 belongs to data.dataset=image_f"),
        (["data.extras=[random_erasing]"], "data.extras belongs to data.recipe=imagenet"),
        (
            ["data.dataset=image_folder", "data.recipe=imagenet", "data.augment=2"],
            "data.recipe=imagenet has no strength: data.augment is 2",
        ),
        (
            ["data.dataset=image_folder", "data.recipe=imagenet", "data.extras=[mixup]"],
            "data.extras=mixup gives an image two labels, and the loss over sliced classes takes",
        ),
        (["train.batch_size=65"], "lower train.batch_size or use fewer ranks"),
        (["train.batch_size=1"], "train.batch_size=1 gives batch norm one value per channel"),
        (
            ["train.batch_size=1", "doctor.before_training=false"],
            "train.batch_size=1 gives batch norm one value per channel",
        ),
        (["backbone.name=resnet81"], "unknown backbone.name=resnet81"),
        (["tracking.uri=mlruns"], "is not a store in which MLflow keeps runs"),
        (["tracking.uri=sqlite:///none/mlflow.db"], "cannot write the MLflow store"),
        (["--folder", "run.yaml/inside"], "disk: cannot write the run's folder /"),
    ],
)
def test_what_is_missing_or_does_not_fit(
    here: Path, capfd: pytest.CaptureFixture[str], overrides: list[str], said: str
) -> None:
    assert said in refused(here, capfd, "train", "run.yaml", *overrides)


def test_a_server_that_is_not_there(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    line = refused(here, capfd, "train", "run.yaml", f"tracking.uri={uri}")
    assert f"the MLflow store {uri} does not answer (connection refused)" in line


def test_no_command(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert "see harness --help" in refused(here, capfd)


@pytest.mark.parametrize(
    ("np", "hosts", "overrides", "said"),
    [
        # Found by each rank alone, before they meet.
        (2, "localhost:2", ["train.stepz=5"], "command line: unknown key train.stepz"),
        # Found by ranks of both hosts, which cannot even meet.
        (
            3,
            "localhost:2,127.0.0.1:1",
            ["classifier.layout=node"],
            "all hosts need the same number of ranks, found 2 here on 2 hosts, but 3 ranks in all",
        ),
        # A host that is named twice looks like two hosts to Horovod, one like the other.
        (
            2,
            "localhost:1,localhost:1",
            [],
            "all hosts need the same number of ranks, found 1 here on 1 hosts, but 2 ranks in all",
        ),
        # Found by all ranks, told when they meet.
        (
            3,
            "localhost:3",
            ["classifier.layout=node", "data.num_classes=2"],
            "classifier.layout=node needs at least 3 classes for 3 ranks",
        ),
        # Found by all ranks when they build the model.
        (2, "localhost:2", ["backbone.name=alexnet"], "backbone.name=alexnet cannot take 3 x 8 x"),
    ],
)
def test_many_ranks_say_it_once(
    here: Path, np: int, hosts: str, overrides: list[str], said: str
) -> None:
    before = content(here)
    command = ["-m", "harness", "train", "run.yaml", *overrides]
    ended = horovodrun(command, np=np, hosts=hosts, folder=here, check=False)
    ranks_lines = [line for line in ended.output.splitlines() if "]<std" in line]
    (line,) = [line for line in ranks_lines if "Terminated" not in line]  # a shell's word for it
    assert line.partition("<stderr>:")[2].startswith(f"harness: {said}")
    assert "Exit code: 2" in ended.output
    assert ended.returncode != 0
    assert content(here) == before, "something was left behind"
