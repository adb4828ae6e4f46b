"""A thread writes what was copied: training goes on, and what it changes is not what is written."""

import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from torch import Tensor

from harness.config import Config, load
from harness.data.open import open_dataset
from harness.errors import RunFailed, UserError
from harness.exchange.carried import Strip
from harness.measure.phase import Phase
from harness.parallel.pulse import SAVE_WAIT, Pulse
from harness.train.checkpoint import saves
from harness.train.checkpoint.checkpoint import Checkpoint
from harness.train.checkpoint.files import write_tensors
from harness.train.checkpoint.places import Places
from harness.train.checkpoint.writing import Writer
from harness.train.step import make_step
from harness.train.training import Training
from tests.alone import world_of_one
from tests.train.checkpoint_program import Journal, made
from tests.train.test_checkpoint import WRITE, checkpoint_at, experiment
from tests.waiting import wait_for

LONG_SECONDS = 60.0
"""For what must happen; if it does not, the test fails."""


class Windows(Journal):
    """Lets others wait for a window of the training."""

    def __init__(self) -> None:
        super().__init__()
        self._ended = {window: threading.Event() for window in range(1, 7)}

    def log(self, step: int, metrics: dict[str, float]) -> None:
        super().log(step, metrics)
        self._ended[step].set()

    def wait_for(self, window: int) -> bool:
        return self._ended[window].wait(LONG_SECONDS)


def run(config: Config, folder: Path, journal: Journal) -> Training:
    training = Training(made(config, world_of_one()), folder)
    training.run(journal)
    return training


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def test_training_goes_on_and_the_copies_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint of window 2 is written once window 4 has ended, to the same bits."""
    config = load(experiment(tmp_path), ["train.checkpoint_every=2", "train.steps=5"])
    run(config, tmp_path / "at once", Journal())
    journal, late = Windows(), []

    def waits(path: Path, tensors: Mapping[str, Tensor]) -> None:
        if path.parent.name.startswith("000000002"):
            # With log_every=1 a window's metrics are logged when the next one has ended.
            late.append(journal.wait_for(3))
        write_tensors(path, tensors)

    monkeypatch.setattr(WRITE, waits)
    run(config, tmp_path / "late", journal)
    assert late == [True, True]
    expected = files(checkpoint_at(tmp_path / "at once", 2))
    assert len(expected) == 2
    assert files(checkpoint_at(tmp_path / "late", 2)) == expected


def test_a_second_save_waits_for_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copies, second, met = Checkpoint.copies, threading.Event(), list[bool]()

    def copied(
        checkpoint: Checkpoint, places: Places, carried: Sequence[Strip] = ()
    ) -> dict[str, dict[str, Tensor]]:
        if (tmp_path / "checkpoints").exists():
            second.set()
        return copies(checkpoint, places, carried)

    def waits(path: Path, tensors: Mapping[str, Tensor]) -> None:
        if path.parent.name.startswith("000000002") and not met:
            met.append(second.wait(0.5))
        write_tensors(path, tensors)

    monkeypatch.setattr(Checkpoint, "copies", copied)
    monkeypatch.setattr(WRITE, waits)
    config = load(experiment(tmp_path), ["train.checkpoint_every=2", "train.steps=4"])
    run(config, tmp_path, Journal())
    assert met == [False], "the second save began while the first was written"
    assert second.is_set()


def test_whatever_ends_the_writing_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other ranks wait for what a rank's thread says, so nothing may end it silently."""

    def fails(path: Path, tensors: Mapping[str, Tensor]) -> None:
        raise MemoryError

    monkeypatch.setattr(WRITE, fails)
    journal = Journal()
    training = run(load(experiment(tmp_path)), tmp_path, journal)
    assert [name for name, _ in journal.warnings] == ["checkpoint"] * 2
    assert all("cannot be written (MemoryError)" in line for _, line in journal.warnings)
    with pytest.raises(RunFailed, match="its model is not saved"):
        training.check_saved()


def test_a_failed_save_is_told_of_when_the_next_window_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only when the next one is due."""

    def fails(path: Path, tensors: Mapping[str, Tensor]) -> None:
        raise OSError("no")

    monkeypatch.setattr(WRITE, fails)
    journal, step = Journal(), made(load(experiment(tmp_path)), world_of_one())
    training, batches = Training(step, tmp_path), step.batches()
    training._window(0, batches, journal)
    training._saves.save(training._meta(1), (), journal)
    training._saves.judged(training._meta(1), good=True)
    under_way = training._saves._under_way
    assert under_way is not None
    assert under_way.judged is not None
    under_way.judged.result(LONG_SECONDS)
    assert journal.warnings == []
    training._window(1, batches, journal)
    ((_, line),) = journal.warnings
    assert "000000001 cannot be written (no); training continues without it" in line


def test_a_slow_disk_is_no_standstill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that waits for its thread moves whenever a file has grown, or other ranks write."""
    shown, settles = list[str](), threading.Event()

    def slow(path: Path, tensors: Mapping[str, Tensor]) -> None:
        assert settles.wait(LONG_SECONDS)
        with path.open("wb") as file:
            for _ in range(3):  # the first look shows in any case
                before = len(shown)
                file.write(bytes(100))
                file.flush()
                wait_for(lambda before=before: len(shown) > before, LONG_SECONDS)
        write_tensors(path, tensors)

    def gather(value: object) -> list[object]:
        wait_for(lambda: shown[-1:] == [SAVE_WAIT], LONG_SECONDS)
        return [value]

    monkeypatch.setattr(WRITE, slow)
    monkeypatch.setattr(saves, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(Pulse, "show", lambda _, phase: shown.append(phase))
    journal, step = Journal(), made(load(experiment(tmp_path)), world_of_one())
    training = Training(step, tmp_path)
    training._window(0, step.batches(), journal)
    monkeypatch.setitem(training._saves.__dict__, "_writer", Writer(gather, leads=True))
    training._saves.save(training._meta(1), (), journal)
    training._saves.judged(training._meta(1), good=True)
    shown.clear()
    settles.set()
    training._saves.settle(journal)
    assert journal.warnings == []
    assert shown[-1] == Phase.OTHER
    assert (checkpoint_at(tmp_path, 1) / "checkpoint.json").exists()


def test_an_evaluation_shows_that_it_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where classes are not sliced it waits for no other rank, and no phase begins in it."""
    shown = list[str]()
    monkeypatch.setattr(Pulse, "show", lambda _, phase: shown.append(phase))
    training = Training(made(load(experiment(tmp_path)), world_of_one()), tmp_path)
    shown.clear()
    training.evaluate()
    assert shown


def test_a_run_that_failed_after_its_last_save_only_evaluates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run that resumes this checkpoint still has nothing to train."""
    whole = Training(made(load(experiment(tmp_path)), world_of_one()), tmp_path / "whole")
    expected = whole.run(Journal()).evaluations

    def fails(self: Training, limit: int = 0) -> dict[str, float]:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Training, "evaluate", fails)
        with pytest.raises(RuntimeError, match="killed"):
            run(load(experiment(tmp_path)), tmp_path / "run", Journal())
    last = f"train.resume={checkpoint_at(tmp_path / 'run', 6)}"
    config = load(experiment(tmp_path), [last, "trace.windows=1", "trace.first_window=2"])
    data = open_dataset(config.data)
    with pytest.raises(UserError, match="is at window 6 and the run ends at 6"):
        make_step(config, data, world_of_one())
    journal = Journal()
    step = make_step(config, data, world_of_one(), goes_on=True)
    found = Training(step, tmp_path / "run").run(journal)
    assert found.evaluations[-1].metrics == expected[-1].metrics
    assert [each.window for each in found.evaluations] == [6]
    assert found.images == 6 * 3
    assert found.timed_windows == 0
    ((name, said),) = journal.warnings
    assert name == "timing"
    assert said.endswith("are not known any more, and comparisons leave them out")
    assert not found.speed_known


DRAIN_SECONDS = 2.0


def test_the_drain_at_the_end_is_training_time_and_in_no_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drain = Training._drain

    def slow(training: Training, ended: int) -> object:
        time.sleep(DRAIN_SECONDS)
        return drain(training, ended)

    monkeypatch.setattr(Training, "_drain", slow)
    config = load(experiment(tmp_path), ["train.untimed_windows=2", "train.save=false"])
    summary = Training(made(config, world_of_one()), tmp_path).run(Journal())
    per_window = summary.images / summary.windows
    timed = summary.timed_windows * per_window / summary.images_per_second
    assert summary.drain_seconds > DRAIN_SECONDS
    assert summary.train_seconds > timed + DRAIN_SECONDS
    assert timed < DRAIN_SECONDS


def test_an_evaluation_that_was_lost_is_made_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank that dies between saving and evaluating must not change the time to an accuracy."""
    changes = ["train.checkpoint_every=2", "train.evaluate_every=2"]
    config = load(experiment(tmp_path), changes)
    whole = Training(made(config, world_of_one()), tmp_path / "whole").run(Journal())
    evaluate, evaluated = Training.evaluate, list[int]()

    def dies(self: Training, limit: int = 0) -> dict[str, float]:
        evaluated.append(limit)
        if len(evaluated) == 2:
            raise RuntimeError("killed")
        return evaluate(self, limit)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "evaluate", dies)
        with pytest.raises(RuntimeError, match="killed"):
            run(config, tmp_path / "run", Journal())
    for window in (4, 2):
        resume = f"train.resume={checkpoint_at(tmp_path / 'run', window)}"
        step = made(load(experiment(tmp_path), [*changes, resume]), world_of_one())
        found = Training(step, tmp_path / f"from {window}").run(Journal()).evaluations
        assert [(each.window, each.metrics, each.drained) for each in found] == [
            (each.window, each.metrics, each.drained) for each in whole.evaluations
        ]
        seconds = [each.train_seconds for each in found]
        assert seconds == sorted(seconds)
