"""Holds one rank: ends it when the launcher is gone, gently at first.

`python -m harness.cluster.leash COMMAND ...` on the rank's machine. Its standard input leads to the
launcher, through ssh where the rank is elsewhere, and ends when that ends or lets go. horovodrun by
itself sends no signal through ssh, and goes on when whoever started it was killed.
"""

import os
import signal
import subprocess
import sys
import threading
from types import FrameType

GRACE_SECONDS = 5.0
"""Between asking a rank to end and ending it."""


def main(command: list[str]) -> int:
    """Runs the command; its exit code, as a shell would give it."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def forward(number: int, frame: FrameType | None) -> None:
        child.send_signal(number)

    signal.signal(signal.SIGTERM, forward)
    signal.signal(signal.SIGINT, forward)
    threading.Thread(target=_end_with_stdin, args=(child,), daemon=True).start()
    code = child.wait()
    return code if code >= 0 else 128 - code


def _end_with_stdin(child: "subprocess.Popen[bytes]") -> None:
    while os.read(0, 4096):
        continue  # nobody writes to a rank; only the end matters
    child.terminate()
    try:
        child.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
