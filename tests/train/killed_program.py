"""Started by horovodrun: `harness train`, whose last rank is killed while it writes."""

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from unittest import mock

from torch import Tensor

from harness.cli import main
from harness.parallel.launcher import launched
from harness.train.checkpoint.files import write_tensors


def killed_at(window: int) -> None:
    """Before the first file of this window's checkpoint is whole."""

    def write(path: Path, tensors: Mapping[str, Tensor]) -> Path:
        place = launched()
        if place.rank == place.size - 1 and path.parent.name == f"{window:09d}.partial":
            path.write_bytes(b"half of it")
            os.kill(os.getpid(), signal.SIGKILL)
        return write_tensors(path, tensors)

    with mock.patch("harness.train.checkpoint.writing.write_tensors", write):
        sys.exit(main(sys.argv[2:]))


if __name__ == "__main__":
    killed_at(int(sys.argv[1]))
