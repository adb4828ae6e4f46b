"""The last good checkpoints stay, whatever happens to the next one; older ones go after it."""

import ctypes
import ctypes.util
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from torch import Tensor

from harness.config import Config, load
from harness.errors import RunFailed
from harness.train.checkpoint.choice import choose_checkpoint
from harness.train.checkpoint.files import write_tensors
from harness.train.training import Training
from tests.alone import world_of_one
from tests.train.checkpoint_program import Journal, made
from tests.train.test_checkpoint import WRITE, checkpoint_at, experiment

EVERY = ["train.checkpoint_every=1", "train.keep_checkpoints=2"]


def names(folder: Path) -> list[int]:
    """The windows of the checkpoints in a run's folder, where nothing else may be."""
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


def newest(folder: Path) -> Path:
    """The newest good one, which must be the newest of all."""
    resume = load(folder / "sgd.yaml", [f"train.resume={folder}"])
    chosen = choose_checkpoint(resume, world_of_one())
    assert chosen is not None
    assert chosen.note == ""
    return chosen.folder


def configured(folder: Path, *changes: str) -> Config:
    return load(experiment(folder), [*EVERY, *changes])


def test_the_last_ones_stay(tmp_path: Path) -> None:
    journal = Journal()
    Training(made(configured(tmp_path), world_of_one()), tmp_path).run(journal)
    assert names(tmp_path) == [5, 6]
    assert newest(tmp_path) == checkpoint_at(tmp_path, 6)
    assert journal.warnings == []


def test_what_an_interrupted_run_left_goes(tmp_path: Path) -> None:
    """Also if the run that goes on saves nothing under the same names."""
    Training(made(configured(tmp_path), world_of_one()), tmp_path).run(Journal())
    folder = tmp_path / "checkpoints"
    for name in ("000000004.old", "000000077.partial", "notes.old"):
        (folder / name).mkdir()
        (folder / name / "file").touch()
    goes_on = configured(tmp_path, f"train.resume={checkpoint_at(tmp_path, 5)}")
    Training(made(goes_on, world_of_one()), tmp_path).run(Journal())
    found = {path.name for path in folder.iterdir()}
    assert found == {"000000005", "000000006", "notes.old"}


def test_nothing_goes_for_one_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there: dict[str, set[str]] = {}

    def fails(path: Path, tensors: Mapping[str, Tensor]) -> None:
        write_tensors(path, tensors)
        there[path.parent.name] = {each.name for each in path.parent.parent.iterdir()}
        if path.parent.name in ("000000003.partial", "000000004.partial"):
            raise OSError("no")

    monkeypatch.setattr(WRITE, fails)
    journal = Journal()
    Training(made(configured(tmp_path), world_of_one()), tmp_path).run(journal)
    assert there["000000005.partial"] == {"000000001", "000000002", "000000005.partial"}
    assert names(tmp_path) == [5, 6]
    assert [name for name, _ in journal.warnings] == ["checkpoint"] * 2


def test_nothing_goes_for_one_whose_evaluation_is_not_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(tmp_path, "train.evaluate_every=1")
    training = Training(made(config, world_of_one()), tmp_path)
    evaluate, calls = training.evaluate, list[int]()

    def lost(limit: int = 0) -> dict[str, float]:
        calls.append(limit)
        extra = {"val/nonfinite_images": 1.0} if len(calls) > 3 else {}
        return evaluate(limit) | extra

    monkeypatch.setattr(training, "evaluate", lost)
    training.run(Journal())
    assert names(tmp_path) == [2, 3, 4, 5, 6]


def test_one_that_cannot_be_removed_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = Path.replace

    def held(path: Path, target: Path) -> Path:
        if Path(target).name == "000000001.old":
            raise OSError("it is in use")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", held)
    journal = Journal()
    Training(made(configured(tmp_path), world_of_one()), tmp_path).run(journal)
    assert names(tmp_path) == [1, 2, 3, 4, 5, 6]
    assert journal.warnings == [
        (
            "after_checkpoint",
            f"{checkpoint_at(tmp_path, window)} is complete, but what follows it failed (it is in "
            f"use): its evaluation is not in it, or an older one is still there",
        )
        for window in (3, 4, 5, 6)
    ]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder in which there is room for two checkpoints and a half."""
    if os.geteuid() != 0:
        pytest.skip("only root can make a small disk")
    folder, libc = tmp_path / "disk", ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)
    folder.mkdir()
    if libc.mount(b"none", bytes(folder), b"tmpfs", 0, f"size={int(2.5 * BYTES)}".encode()):
        pytest.skip(f"no file system can be mounted here: {os.strerror(ctypes.get_errno())}")
    try:
        yield folder
    finally:
        libc.umount2(bytes(folder), 2)


BYTES = 5_600_000
"""A checkpoint of the experiment here, rounded up."""


def test_a_full_disk_loses_nothing(small_disk: Path) -> None:
    """Windows 1 and 2 fit; from then on there is no room, and the last save fails the run."""
    journal = Journal()
    training = Training(made(configured(small_disk), world_of_one()), small_disk)
    training.run(journal)
    assert names(small_disk) == [1, 2]
    assert newest(small_disk) == checkpoint_at(small_disk, 2)
    assert len(journal.warnings) == 4
    assert all("No space left on device" in line for _, line in journal.warnings)
    with pytest.raises(RunFailed, match=r"000000006 cannot be written \(.*No space left"):
        training.check_saved()


def test_there_is_always_room_for_one_more_if_one_is_kept(small_disk: Path) -> None:
    config = configured(small_disk, "train.keep_checkpoints=1")
    journal = Journal()
    Training(made(config, world_of_one()), small_disk).run(journal)
    assert names(small_disk) == [6]
    assert journal.warnings == []
