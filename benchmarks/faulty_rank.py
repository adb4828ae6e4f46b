"""Started on every rank: `harness train`, in which one rank causes one fault once, or many.

`python -m benchmarks.faulty_rank FAULT PID train EXPERIMENT.yaml ... --folder FOLDER`; PID is the
process that a fault of something else than a rank goes to. `soak WINDOWS` in place of FAULT PID:
faults follow each other, so many windows apart on average.
"""

import errno
import itertools
import json
import math
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

from pyroute2 import IPRoute

from harness.cli import main
from harness.data.loader import Batch
from harness.lab.host import NETWORK
from harness.model.sliced_classifier import Scores
from harness.parallel.launcher import launched
from harness.tracking.run_folder import CHECKPOINTS
from harness.train.checkpoint.files import BACKBONE
from harness.train.ledger import Journal
from harness.train.step import Step

EVERY = 20
"""Windows between checkpoints."""
WINDOW = 70
"""The fault comes after so many windows, between two checkpoints."""
RANK = 3
"""The rank that causes it."""
MARK = "fault.json"
"""File in the run's folder with the time of the fault, which thereby comes once."""
FILLER = "filler"
"""File in the run's folder that fills the disk, until `FREED`."""
FREED = WINDOW + 2 * EVERY
"""The disk has room again after so many windows, and so after two checkpoints that failed."""
JUMP_SECONDS = 3600.0

Fault = Callable[[Step, Path, int], None]


def kill(step: Step, folder: Path, pid: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stop(step: Step, folder: Path, pid: int) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def sleep(step: Step, folder: Path, pid: int) -> None:
    time.sleep(3600)


def nan(step: Step, folder: Path, pid: int) -> None:
    step.model.sliced.values[0] = math.nan


def truncate(step: Step, folder: Path, pid: int) -> None:
    file = newest(folder) / BACKBONE
    os.truncate(file, file.stat().st_size // 2)
    kill(step, folder, pid)


def flip(step: Step, folder: Path, pid: int) -> None:
    file = newest(folder) / BACKBONE
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    kill(step, folder, pid)


def kill_other(step: Step, folder: Path, pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def warn_other(step: Step, folder: Path, pid: int) -> None:
    os.kill(pid, signal.SIGTERM)


def stop_other(step: Step, folder: Path, pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)


def fill(step: Step, folder: Path, pid: int) -> None:
    with (folder / FILLER).open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise


def jump(step: Step, folder: Path, pid: int) -> None:
    """Sets the clock of this process forward; the others' stays as it is."""
    real = time.time

    def jumped() -> float:
        return real() + JUMP_SECONDS

    mock.patch("time.time", jumped).start()


def lab_link() -> int | None:
    """Index of the network interface of this test host; None if this is none of the lab."""
    with IPRoute() as route:
        for each in route.get_addr(label="eth0"):
            if each.get_attr("IFA_ADDRESS", "").startswith(f"{NETWORK}."):
                return int(each["index"])
    return None


def cut(step: Step, folder: Path, pid: int) -> None:
    """Takes this test host off its network: its packets are lost without a word to anyone."""
    link = lab_link()
    if link is None:
        raise RuntimeError("this rank is on the machine itself, not on a test host of the lab")
    with IPRoute() as route:
        route.link("set", index=link, state="down")


def kill_host(step: Step, folder: Path, pid: int) -> None:
    """The picture of a host without power: nobody hears that its processes have ended."""
    cut(step, folder, pid)
    os.kill(-1, signal.SIGKILL)  # all others that this host sees, which are its own
    kill(step, folder, pid)


def slow_link(step: Step, folder: Path, pid: int) -> None:
    """The benchmark sets the link's rate when it sees that the fault is due."""


FAULTS: dict[str, Fault] = {
    "kill a rank": kill,
    "stop a rank": stop,
    "sleep in Python": sleep,
    "NaN": nan,
    "truncate a checkpoint": truncate,
    "flip a bit": flip,
    "kill the launcher": kill_other,
    "SIGTERM": warn_other,
    "stop the store": stop_other,
    "fill the disk": fill,
    "a clock that jumps": jump,
    "slow a link": slow_link,
    "cut a link": cut,
    "kill a host": kill_host,
}


SOAK, SOAKED, STARTED = "soak", "soaked.jsonl", "started.jsonl"
"""Name of the run with many faults; files in its folder with a line for each fault, and for each
start once its first window is trained: the time, and how many windows have been trained."""
SOAKING = (
    "kill a rank",
    "stop a rank",
    "sleep in Python",
    "NaN",
    "truncate a checkpoint",
    "flip a bit",
)
"""Faults of a soak: those after which the launcher starts the ranks again."""


def newest(folder: Path) -> Path:
    """The newest complete checkpoint."""
    return max(each for each in (folder / CHECKPOINTS).iterdir() if each.name.isdecimal())


def is_first_time(folder: Path) -> bool:
    try:
        with (folder / MARK).open("x", encoding="utf-8") as file:
            file.write(json.dumps({"at": time.time(), "window": WINDOW}))
    except FileExistsError:
        return False
    return True


Before = Callable[[Step, int], None]
"""Called on every rank before each window, with its number."""


def one_fault(name: str, pid: int, folder: Path) -> Before:
    """The fault comes before the window after WINDOW windows."""

    def before(step: Step, number: int) -> None:
        if number == WINDOW and launched().rank == RANK and is_first_time(folder):
            FAULTS[name](step, folder, pid)
        if number == FREED and launched().rank == RANK:
            (folder / FILLER).unlink(missing_ok=True)

    return before


@dataclass(frozen=True)
class Due:
    """The next fault of a soak."""

    fault: str
    rank: int
    after: int
    """Windows since the run was last started."""


def drawn(number: int, ranks: int, mean: int) -> Due:
    """The fault with this number: seldom within the first two checkpoints after a start, because a
    run that makes no progress is given up; `mean` windows after it on average."""
    draw = random.Random(number)
    distance = EVERY * 2 + 1 + draw.expovariate(1 / max(1, mean - 2 * EVERY - 1))
    return Due(draw.choice(SOAKING), draw.randrange(ranks), round(distance))


def lines_of(file: Path) -> list[Any]:
    """What the lines of a file say, each in JSON; nothing if there is no file yet."""
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    return [json.loads(line) for line in text.splitlines()]


def soaked(mean: int, folder: Path) -> Before:
    """Faults come one after the other, at most one in a process."""
    passed = itertools.count()

    @cache
    def due() -> Due:
        # Once: the next one, counted from the same start, might be due at once where a process goes
        # on for some windows after its fault.
        return drawn(len(lines_of(folder / SOAKED)), launched().size, mean)

    def add(file: str, number: int, **more: object) -> None:
        with (folder / file).open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"at": time.time(), "window": number, **more}) + "\n")

    def before(step: Step, number: int) -> None:
        trained, fault = next(passed), due()
        if trained == 1 and launched().rank == 0:
            add(STARTED, number)
        if trained == fault.after and launched().rank == fault.rank:
            add(SOAKED, number, fault=fault.fault, rank=fault.rank)
            FAULTS[fault.fault](step, folder, 0)

    return before


def run(fault: str, number: int, words: list[str]) -> int:
    """Trains. `number`: the process that the fault goes to, or the mean distance of a soak's."""
    folder, whole = Path(words[words.index("--folder") + 1]), Step.window
    before = soaked(number, folder) if fault == SOAK else one_fault(fault, number, folder)

    def window(step: Step, number: int, batches: Iterator[Batch], journal: Journal) -> list[Scores]:
        before(step, number)
        return whole(step, number, batches, journal)

    with mock.patch.object(Step, "window", window):
        return main(words)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))
