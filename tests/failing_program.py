"""A training in which one rank fails in the middle of a run, in the way that its arguments say.

`-m tests.failing_program HOW RANK ARGUMENTS...`: the arguments are those of the command line.
"""

import os
import signal
import sys
from datetime import timedelta
from typing import Any

from harness.cli import main
from harness.errors import UserError
from harness.model.sliced_classifier import Scores
from harness.parallel import world
from harness.train import step

WINDOW = 3
TIMEOUT = timedelta(seconds=8)


def fail(how: str) -> None:
    if how == "raise":
        raise ZeroDivisionError("wrong on purpose")
    if how == "mistake":
        raise UserError("an image is broken; replace it")
    if how == "memory":
        raise MemoryError("no room for 1 TB")
    number = {"stop": signal.SIGSTOP, "kill": signal.SIGKILL, "abort": signal.SIGABRT}[how]
    os.kill(os.getpid(), number)


class Failing(step.Step):
    def window(self, window: int, *rest: Any) -> list[Scores]:
        if window == WINDOW and self.world.topology.rank == int(sys.argv[2]):
            fail(sys.argv[1])
        return super().window(window, *rest)


if __name__ == "__main__":
    world.TIMEOUT = TIMEOUT
    step.Step = Failing  # type: ignore[misc]
    sys.exit(main(sys.argv[3:]))
