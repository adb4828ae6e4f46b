"""A soak's figures are what its lines say, and what is predicted is what chance gives."""

import json
import random
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import soak
from benchmarks.faulty_rank import EVERY, SOAKED
from benchmarks.soak import Pace, Soaked, predicted_share, progress, told
from harness.tracking.run_folder import META, RunFolder

FOUND = Soaked(100, 300, {"NaN": 2, "flip a bit": 1}, 3, True, 90, 30, 50, 1 / 3, 15, 20, 0.4)


def simulated(between: float, interval: float, restart: float, seed: int) -> float:
    """The useful share of a training in which faults are drawn, none of them while it starts."""
    chance, now, done, intervals = random.Random(seed), 0.0, 0, 100_000
    left = chance.expovariate(1 / between)
    while done < intervals:
        if left > interval:
            now, left, done = now + interval, left - interval, done + 1
        else:
            now, left = now + left + restart, chance.expovariate(1 / between)
    return done * interval / now


@pytest.mark.parametrize("case", [(1000, 100, 40), (300, 400, 60), (15, 3, 30), (5, 20, 1)])
def test_the_predicted_share_is_what_drawn_faults_leave(case: tuple[float, float, float]) -> None:
    assert simulated(*case, seed=3) == pytest.approx(predicted_share(*case), rel=0.02)


def line(at: float, window: int) -> dict[str, float]:
    return {"at": at, "window": window}


def test_times_are_counted_between_starts_and_faults() -> None:
    """A second for each window; the second fault goes back beyond the newest checkpoint."""
    started = [line(10, 1), line(80, 41), line(170, 61)]
    happened = [line(50, 41), line(130, 91)]
    assert Pace.of(started, happened) == Pace(restart=(30 + 40) / 2, window=1.0, again=1 + 31)


def test_progress_counts_faults_and_windows(tmp_path: Path) -> None:
    assert progress(tmp_path, 4000) == f"{tmp_path.name}: 0 faults so far, 0 of 4,000 windows"
    (tmp_path / SOAKED).write_text("{}\n{}\n")
    for window in (EVERY, 51 * EVERY):
        checkpoint = RunFolder(tmp_path).checkpoint(window)
        checkpoint.mkdir(parents=True)
        (checkpoint / META).touch()
    assert progress(tmp_path, 4000).endswith(f"2 faults so far, {51 * EVERY:,} of 4,000 windows")


def test_it_is_told_while_a_run_goes_on_and_no_longer(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(soak, "TOLD_SECONDS", 0.001)
    twice, asked = threading.Event(), []

    def say() -> str:
        asked.append(len(asked))
        if len(asked) == 2:
            twice.set()
        return f"line {len(asked)}"

    with told(say):
        assert twice.wait(60)
    lines = capfd.readouterr().err.splitlines()
    assert lines == [f"line {number + 1}" for number in asked]
    assert not [each for each in threading.enumerate() if each.name == soak.TELLER]


def test_the_file_is_named_after_the_faults_that_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(soak, "run", lambda bench, faults, apart: replace(FOUND, apart=apart))
    words = ["--faults", "9", "--apart", "50", "--folder", f"{tmp_path}/runs", "--output"]
    monkeypatch.setattr(sys, "argv", ["soak", *words, f"{tmp_path}/kept"])
    soak.main()
    (file,) = (tmp_path / "kept").iterdir()
    assert file.name == "soak-3-50.json"
    assert json.loads(file.read_text())["faults"] == FOUND.faults
    assert json.loads(capfd.readouterr().out)["apart"] == 50
