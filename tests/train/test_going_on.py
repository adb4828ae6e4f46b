"""From where a run goes on that ended early, what that has cost, and which checkpoint is bad."""

import errno
import json
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from harness.checkpoint.verify import verify
from harness.cli import main
from harness.config import Config, load
from harness.data.open import open_dataset
from harness.errors import Diverged, RunFailed, UserError
from harness.tracking.ended import check_alike
from harness.tracking.run_folder import BAD, CONFIG, RunFolder
from harness.train import run as running
from harness.train.checkpoint.meta import CHECKSUM, read_meta
from harness.train.checkpoint.verdict import mark_bad
from harness.train.going_on import (
    FIRST_WINDOWS,
    Place,
    Start,
    began_on,
    begin_again,
    choose_start,
    chosen_before,
    condemn,
)
from tests.alone import world_of_one
from tests.train.test_checkpoint import checkpoint_at, experiment, trained

SAID = "the loss of window 7 is not finite"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that saved three times."""
    folder = tmp_path_factory.mktemp("original")
    config = load(experiment(folder), ["train.checkpoint_every=2"])
    trained(config, folder)
    RunFolder(folder).write_config(config)
    return folder


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "run"))


def config_of(run: Path, *changes: str) -> Config:
    return load(run / "sgd.yaml", ["train.checkpoint_every=2", *changes])


def start(run: Path, *changes: str, goes_on: bool = True) -> Start:
    return choose_start(config_of(run, *changes), Place(run, goes_on), world_of_one())


def window(found: Start) -> int:
    return 0 if found.own is None else read_meta(found.own).window


def test_the_newest_good_checkpoint_of_the_own_folder_is_taken(run: Path) -> None:
    assert window(start(run)) == 6
    mark_bad(checkpoint_at(run, 6), SAID)
    (checkpoint_at(run, 4) / "backbone.safetensors").write_bytes(b"half")
    found = start(run)
    assert window(found) == 2
    assert found.chosen is not None
    assert f"000000006: it is marked bad ({SAID}; its file BAD" in found.chosen.note
    assert found.given(config_of(run)).train.resume == str(checkpoint_at(run, 2))


def test_verify_tells_of_the_mark(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mark_bad(checkpoint_at(run, 4), SAID)
    assert verify(run) == 1
    told = [line for line in capsys.readouterr().out.splitlines() if "bad: " in line]
    assert told == [
        f"{checkpoint_at(run, 4)}: bad: it is marked bad ({SAID}; its file BAD can be removed)"
    ]


def test_without_a_good_one_it_begins_as_it_did_the_first_time(
    run: Path, original: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(run / "checkpoints")
    found = start(run)
    assert (found.chosen, found.own, found.window) == (None, None, 0)
    assert "has no checkpoint; the run begins again from the first window" in (
        capsys.readouterr().out
    )
    other = start(run, f"train.resume={checkpoint_at(original, 4)}")
    assert other.own is None
    assert other.window == 4


def test_what_a_run_chose_by_measuring_holds_for_its_restarts_on_as_many_ranks(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also before the first checkpoint, which says it: its record and its first windows do."""
    recorded = config_of(run).exchanging(route="flat")
    (run / CONFIG).write_text(recorded.to_yaml())
    RunFolder(run).write_environment({"ranks": 1})
    assert chosen_before(start(run), world_of_one()) is None, "the checkpoint says it"
    shutil.rmtree(run / "checkpoints")
    config, again = config_of(run), start(run)
    data = open_dataset(config.data)
    with monkeypatch.context() as patch:
        for name in ("choose_kind", "choose_pieces", "choose_route"):
            patch.setattr(running, name, lambda *_: pytest.fail("it is measured again"))
        assert running._with_choices(config, data, world_of_one(), again) == recorded
    RunFolder(run).write_environment({"ranks": 2})
    assert running._with_choices(config, data, world_of_one(), again) == config


def test_who_has_saved_does_not_begin_again_with_the_first_window(
    run: Path, original: Path
) -> None:
    """What is bad may be mended; a run of a night must not be lost because nobody looked."""
    for number in (2, 4):
        shutil.rmtree(checkpoint_at(run, number))
    mark_bad(checkpoint_at(run, 6), SAID)
    with pytest.raises(RunFailed) as raised:
        start(run, f"train.resume={checkpoint_at(original, 4)}")
    assert str(raised.value).startswith(
        f"the run in {run} has checkpoints, but none to go on from: 000000006: it is marked bad "
        f"({SAID}; its file BAD can be removed); mend that, or begin anew in another --folder"
    )


def test_a_run_that_died_in_its_first_save_begins_again(run: Path) -> None:
    for number in (2, 4):
        shutil.rmtree(checkpoint_at(run, number))
    checkpoint_at(run, 6).rename(run / "checkpoints" / "000000006.partial")
    assert start(run).window == 0


def test_a_disk_that_does_not_answer_is_not_an_empty_one(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(folder: Path) -> list[str]:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", fails)
        with pytest.raises(
            UserError, match=r"cannot look for checkpoints in .*/checkpoints \(Stale"
        ):
            start(run)
    assert window(start(run)) == 6


def test_a_folder_without_a_run_begins_one(run: Path, tmp_path: Path) -> None:
    found = choose_start(config_of(run), Place(tmp_path / "new", goes_on=True), world_of_one())
    assert not found.place.goes_on
    assert found.chosen is None
    assert not start(run, goes_on=False).place.goes_on


def test_only_the_same_settings_go_on(run: Path) -> None:
    check_alike(config_of(run, "train.threads=1"), run)
    with pytest.raises(UserError, match=r"has seed=\d+, and here it is 99; continue it with"):
        check_alike(config_of(run, "seed=99"), run)


def test_a_run_that_has_chosen_its_kind_goes_on(run: Path) -> None:
    """It has recorded what it chose; the experiment still asks it to choose."""
    recorded = config_of(run)
    chosen = recorded.exchanging(kind="synchronous", compression="fp16")
    (run / CONFIG).write_text(chosen.to_yaml())
    asks = config_of(run, "exchange.kind=auto", "exchange.compression=int8", "exchange.delay=1")
    check_alike(asks, run)
    with pytest.raises(UserError, match=r"has seed=\d+, and here it is 99; continue it with"):
        check_alike(asks.model_copy(update={"seed": 99}), run)
    with pytest.raises(UserError, match=r"exchange\.compression=fp16, and here it is none"):
        check_alike(recorded, run)


def test_a_run_that_began_on_cards_does_not_go_on_on_processors(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """With train.device=auto, which takes processors where a card is missing."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    RunFolder(run).write_environment({"device": "cuda"})
    words = [str(run / "sgd.yaml"), "train.checkpoint_every=2", "--folder", str(run), "--continue"]
    assert main(["train", *words]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("harness: the run began on cards, but now ")
    assert began_on(Place(run, goes_on=True), world_of_one()) == "cuda"
    assert began_on(Place(run), world_of_one()) is None


@pytest.mark.parametrize(("after", "bad"), [(1, True), (FIRST_WINDOWS, True), (11, False)])
def test_who_diverges_soon_after_a_load_has_loaded_the_cause(
    run: Path, after: int, bad: bool
) -> None:
    own = start(run).own
    error = Diverged(SAID, "lower optimizer.lr", 6 + after)
    assert condemn(own, error, leads=False).startswith("the checkpoint 000000006" if bad else "")
    assert not (checkpoint_at(run, 6) / BAD).exists()
    condemn(own, error, leads=True)
    assert (checkpoint_at(run, 6) / BAD).exists() == bad
    assert window(start(run)) == (4 if bad else 6)


def test_a_checkpoint_of_another_run_is_never_condemned() -> None:
    assert condemn(None, Diverged(SAID, "", 1), leads=True) == ""


def copied_at(run: Path, number: int, at: float) -> Path:
    """Changes when a checkpoint was copied."""
    folder = checkpoint_at(run, number)
    meta = read_meta(folder).model_copy(update={"at": at})
    (folder / "checkpoint.json").write_text(meta.to_json())
    assert CHECKSUM in json.loads(meta.to_json())
    return folder


def lost(run: Path, checkpoints: Sequence[Path | None], times: Sequence[float]) -> list[float]:
    found = []
    with pytest.MonkeyPatch.context() as patch:
        for checkpoint, now in zip(checkpoints, times, strict=True):
            patch.setattr(time, "time", lambda now=now: now)
            found.append(begin_again(run, checkpoint, ranks=2).lost_seconds)
    return found


def test_lost_is_all_time_that_led_to_nothing(run: Path) -> None:
    """The run begins at 1,000; it saves at 1,100 and, after the first restart at 1,130, at 1,200.
    It goes on from there at 1,210, diverges, and goes on from the older one at 1,250."""
    os.utime(run / "config.yaml", (1000, 1000))
    first, second = copied_at(run, 2, 1100), copied_at(run, 4, 1200)
    found = lost(run, [first, second, first], [1130, 1210, 1250])
    # 30; 30 + 10; all since 1,100.
    assert found == [30, 40, 150]
    assert [line["restart"] for line in RunFolder(run).restarts()] == [1, 2, 3]
    assert [line["window"] for line in RunFolder(run).restarts()] == [2, 4, 2]


def test_without_a_checkpoint_everything_is_lost(run: Path) -> None:
    os.utime(run / "config.yaml", (1000, 1000))
    assert lost(run, [None, None], [1040, 1100]) == [40, 100]
