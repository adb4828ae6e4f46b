"""One rank fails in the middle of a run: what all of them print, in which order, and of whom."""

import io
import re
import sys
from pathlib import Path

import pytest

from harness.launch.launch import Outcome, launch
from harness.leaving import VICTIM
from tests.horovodrun import ROOT, horovodrun

TINY = """
name: failing
data: {dataset: synthetic, num_classes: 8, image_size: 8, synthetic_images: 64}
train: {batch_size: 2, steps: 6, untimed_windows: 0, matmul_seconds: 0}
tracking: {enabled: false}
doctor: {before_training: false}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tiny.yaml").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said_by(output: str) -> list[tuple[int, str]]:
    """Rank and words of every line that a rank printed on stderr, without progress and shells."""
    found = []
    for line in output.splitlines():
        head, mark, words = line.partition("]<stderr>:")
        words = words.rpartition("\r")[2]
        if mark and "window" not in words[:80] and words not in ("", "Terminated", "Killed"):
            found.append((int(head.lstrip("[")), words))
    return found


@pytest.mark.parametrize(
    ("how", "hosts", "overrides"),
    [
        ("raise", "localhost:1,127.0.0.1:1", ()),
        ("mistake", "localhost:2", ("classifier.layout=node",)),
    ],
)
def test_the_cause_comes_last_after_one_line_of_every_other_rank(
    here: Path, how: str, hosts: str, overrides: tuple[str, ...]
) -> None:
    command = ["-m", "tests.failing_program", how, "1", "train", "tiny.yaml", *overrides]
    ended = horovodrun(command, np=2, hosts=hosts, folder=here, check=False, timeout=500)
    said = said_by(ended.stderr)
    assert ended.returncode != 0
    assert [rank for rank, words in said if VICTIM.match(words)] == [0], ended.output
    assert said[0][0] == 0, ended.output
    assert {rank for rank, _ in said[1:]} == {1}
    if how == "raise":
        assert said[1][1].startswith("Traceback")
        assert said[-1][1] == "ZeroDivisionError: wrong on purpose"
    else:
        assert said[1:] == [(1, "harness: an image is broken; replace it")]


WITH_CARDS = """
import atexit
import sys
import threading
import torch.distributed as dist
from harness.cli import main
from harness.train import step
from tests.failing_program import Failing


def never(*_: object) -> None:
    threading.Event().wait()


dist.get_backend_config = lambda *_: "cpu:gloo,cuda:nccl"
dist.destroy_process_group = never
atexit.register(never)
step.Step = Failing
sys.exit(main(sys.argv[3:]))
"""


def test_a_rank_with_a_card_does_not_wait_for_others_before_it_says_the_cause(here: Path) -> None:
    """NCCL closes its groups together with the other ranks, also as Python ends."""
    (here / "with_cards.py").write_text(WITH_CARDS)
    command = ["with_cards.py", "raise", "1", "train", "tiny.yaml"]
    hosts = "localhost:1,127.0.0.1:1"
    ended = horovodrun(command, np=2, hosts=hosts, folder=here, check=False, timeout=120)
    assert ended.returncode != 0
    assert (1, "ZeroDivisionError: wrong on purpose") in said_by(ended.stderr), ended.output


def stop_rank_1(here: Path, *overrides: str) -> tuple[Outcome, str]:
    """The outcome of a training whose second rank stops, and what the screen showed."""
    program = [sys.executable, "-m", "tests.failing_program", "stop", "1"]
    screen = io.StringIO()
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", str(ROOT))
        patched.setenv("OMP_NUM_THREADS", "1")
        outcome = launch(
            [*program, "train", "tiny.yaml", *overrides],
            2,
            "localhost:1,127.0.0.1:1",
            here / "log.txt",
            screen,
        )
    assert outcome.exit_code == 1
    return outcome, screen.getvalue()


def test_a_stopped_rank_is_named(here: Path) -> None:
    """By what the leashes report, long before the timeouts of Gloo."""
    outcome, screen = stop_rank_1(here, "train.stuck_seconds=5")
    first, *ranks, _ = outcome.reason.splitlines()
    assert first.startswith("rank 1 on 127.0.0.1 did not move (its process is stopped), and others")
    assert re.match(r"  rank 1 on 127.0.0.1: \w+ of window 3 for \d+ s", ranks[-1])
    assert "rank 1: leash: this rank's process is stopped" in screen
    assert "most recent call first" in outcome.log.read_text()


def test_a_stopped_rank_is_named_after_the_others_timeouts(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others wait for it as long as the timeouts of Gloo, which are short here."""
    # The others notice after this: closing Horovod waits for a stopped rank as well.
    monkeypatch.setattr("harness.launch.launch.START_SECONDS", 40)
    outcome, _ = stop_rank_1(here, "train.stuck_seconds=0")
    first, *rest = outcome.reason.splitlines()
    # Horovod's own timeout, or torch's where its closing is what waits.
    assert re.fullmatch(
        r"rank 1 on 127.0.0.1 did not answer for (8|40) s \(its process is stopped\)", first
    ), outcome.reason
    assert all(VICTIM.match(line) for line in rest)
