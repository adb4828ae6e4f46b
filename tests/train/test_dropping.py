"""A window that is not finite on one rank is dropped on all, and leaves no trace."""

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from harness.config import Config, load
from harness.errors import Diverged
from harness.train.checkpoint.meta import read_meta
from harness.train.training import Training
from tests.alone import world_of_one
from tests.horovodrun import horovodrun
from tests.journals import Losses
from tests.train.checkpoint_program import made
from tests.train.dropping_program import CASES, SPOILT, Dropped
from tests.train.poison import Poison
from tests.train.test_checkpoint import checkpoint_at, experiment


@cache
def results() -> dict[str, Any]:
    """Two nodes of two ranks, one launch."""
    found = horovodrun(
        ["-m", "tests.train.dropping_program"],
        timeout=400,
        environment={"HOROVOD_CYCLE_TIME": "5"},
    )
    lines = [json.loads(line) for line in found.lines(0) if line.startswith("{")]
    return {line["case"]: line for line in lines}


@pytest.mark.timeout(500)
@pytest.mark.parametrize("dropped", CASES, ids=lambda each: each.name)
def test_a_dropped_window_leaves_no_trace(dropped: Dropped) -> None:
    """Values, batch statistics, momentum and what wires owe are equal to the bit to those of a run
    that was told to drop the same window, in which nothing was wrong."""
    found = results()[dropped.name]
    assert found["equal"] == [True] * 4
    assert not found["as_if_nothing"]
    ((window, number),) = found["dropped"]
    assert window == SPOILT
    # Nodes that step alone drop each step of the window.
    alone = dropped.case.kind in ("averaging", "isolated")
    assert number == (dropped.case.passes if alone else 1)


@pytest.mark.timeout(500)
def test_many_in_a_row_end_the_run_on_all_ranks_alike() -> None:
    found = results()["hopeless"]
    first, *others = found["said"]
    assert first.startswith(f"{found['after']} steps in a row were dropped up to window 5")
    assert others == [first] * 3


def test_torchs_own_exchanges_cannot_drop() -> None:
    values = {"train": {"steps": 1, "on_nonfinite": "skip"}, "exchange": {"kind": "ddp"}}
    with pytest.raises(ValueError, match="sends it inside torch"):
        Config.model_validate(values)


def test_a_run_that_goes_on_counts_on(tmp_path: Path) -> None:
    """Two steps are dropped before the checkpoint and three after it: five in a row."""
    skip = "train.on_nonfinite=skip"
    step = made(load(experiment(tmp_path), [skip]), world_of_one())
    for window in (2, 3):
        Poison("loss", window, math.nan).into(step)
    Training(step, tmp_path).run(Losses())
    saved = read_meta(checkpoint_at(tmp_path, 3)).progress
    assert (saved.dropped_steps, saved.dropped_in_a_row) == (2, 2)
    last = read_meta(checkpoint_at(tmp_path, 6)).progress
    assert (last.dropped_steps, last.dropped_in_a_row) == (2, 0)
    resume = f"train.resume={checkpoint_at(tmp_path, 3)}"
    again = made(load(experiment(tmp_path), [skip, resume]), world_of_one())
    for window in (1, 2, 3):  # counted from the first of this start
        Poison("loss", window, math.nan).into(again)
    with pytest.raises(Diverged, match="5 steps in a row were dropped up to window 6"):
        Training(again, tmp_path / "again").run(Losses())
