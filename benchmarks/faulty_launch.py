"""`harness launch` of ranks one of which causes a fault; see `faulty_rank`.

`python -m benchmarks.faulty_launch FAULT PID launch ...`; a PID of 0 is this process. `soak
WINDOWS` in place of FAULT PID as there.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

from harness.cli import main
from harness.launch.training import train_command


def run(fault: str, pid: int, words: list[str]) -> int:
    def faulty(
        experiment: Path, overrides: Sequence[str], folder: Path, goes_on: bool = False
    ) -> list[str]:
        python, _, _, *rest = train_command(experiment, overrides, folder, goes_on)
        return [python, "-m", "benchmarks.faulty_rank", fault, str(pid or os.getpid()), *rest]

    with mock.patch("harness.launch.supervisor.train_command", faulty):
        return main(words)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))
