"""A training checks its hosts first: a fault ends it in one line, a warning is printed once."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.config import Config
from harness.doctor import disk, static
from harness.doctor.before_training import check_before_training
from harness.doctor.memory import MemoryFacts
from harness.errors import UserError
from tests.alone import world_of_one

GB = 10**9


def config(folder: Path, **doctor: bool) -> Config:
    return Config.model_validate(
        {
            "train": {"steps": 1},
            "data": {"dataset": "synthetic", "cache": str(folder)},
            "tracking": {"folder": str(folder)},
            "doctor": doctor,
        }
    )


def with_memory(free: float, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = MemoryFacts(host_free=int(free), card_free=None)
    monkeypatch.setattr(static, "memory_facts", lambda device: facts)


def test_a_machine_that_is_well_says_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    check_before_training(config(tmp_path), world_of_one())
    assert capfd.readouterr() == ("", "")


def test_a_fault_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_memory(1e6, monkeypatch)
    with pytest.raises(UserError) as raised:
        check_before_training(config(tmp_path), world_of_one())
    said = str(raised.value)
    assert said.startswith("memory: host ")
    assert "has 1 MB free; a rank needs" in said
    assert said.endswith("(to train anyway, set doctor.before_training=false)")
    assert "\n" not in said


def test_a_warning_is_told_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with_memory(20e6, monkeypatch)
    check_before_training(config(tmp_path), world_of_one())
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("harness doctor: warn  memory")


def test_it_can_be_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_memory(1e6, monkeypatch)
    check_before_training(config(tmp_path, before_training=False), world_of_one())


def test_the_disk_is_that_of_the_folder_that_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own checkpoints may fill that disk: a run that goes on needs no room for them."""
    own = config(tmp_path / "another disk")
    saving = own.train.model_copy(update={"checkpoint_every": 1})
    own = own.model_copy(update={"train": saving})
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    saved = tmp_path / "run" / "checkpoints" / "000000001" / "backbone.safetensors"
    saved.parent.mkdir(parents=True)
    saved.touch()
    os.truncate(saved, GB)
    with pytest.raises(UserError, match=r"disk: the run's folder .*another disk.* has 0 B free"):
        check_before_training(own, world_of_one())
    with pytest.raises(UserError, match="this run writes about"):
        check_before_training(own, world_of_one(), tmp_path / "new")
    check_before_training(own, world_of_one(), tmp_path / "run")
