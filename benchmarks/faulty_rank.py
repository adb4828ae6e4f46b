"""Started on every rank: `harness train`, in which one rank causes one fault, once.

`python -m benchmarks.faulty_rank FAULT PID train EXPERIMENT.yaml ... --folder FOLDER`; PID is the
process that a fault of something else than a rank goes to.
"""

import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

from harness.cli import main
from harness.data.loader import Batch
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
}


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


def run(fault: Fault, pid: int, words: list[str]) -> int:
    """Trains, with the fault before the window after WINDOW windows."""
    folder, whole = Path(words[words.index("--folder") + 1]), Step.window

    def window(step: Step, number: int, batches: Iterator[Batch], journal: Journal) -> list[Scores]:
        if number == WINDOW and launched().rank == RANK and is_first_time(folder):
            fault(step, folder, pid)
        return whole(step, number, batches, journal)

    with mock.patch.object(Step, "window", window):
        return main(words)


if __name__ == "__main__":
    sys.exit(run(FAULTS[sys.argv[1]], int(sys.argv[2]), sys.argv[3:]))
