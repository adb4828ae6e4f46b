"""A training checks its hosts first: a fault ends it in one line, a warning is printed once."""

from pathlib import Path

import pytest

from harness.config import Config
from harness.doctor import static
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
