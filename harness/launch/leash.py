"""Holds one command: ends it when whoever started it is gone, gently at first.

`python -m harness.launch.leash COMMAND ...` on the rank's machine. Its standard input leads to the
launcher, through ssh where the rank is elsewhere, and ends when that ends or lets go. horovodrun by
itself sends no signal through ssh, and goes on when whoever started it was killed. Neither does
ssh: a byte on standard input is the number of a signal for the command's process group. A line on
standard error says when the command's process is stopped: then it cannot say anything itself.
"""

import os
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType

GRACE_SECONDS = 5.0
"""Between asking a command to end and ending it."""
FORWARDED = (signal.SIGINT, signal.SIGTERM)
"""From this process to the command."""
PASSED_ON = (*FORWARDED, signal.SIGHUP)
"""From standard input to the command's process group."""
LOOK_SECONDS = 2.0
STOPPED, RESUMED = "leash: this rank's process is stopped", "leash: this rank's process runs again"


def main(command: list[str]) -> int:
    """Runs the command; its exit code, as a shell would give it."""
    for number in FORWARDED:  # what a shell in the background ignores, its children would, too
        signal.signal(number, signal.SIG_DFL)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0)

    def forward(number: int, frame: FrameType | None) -> None:
        child.send_signal(number)

    for number in FORWARDED:
        signal.signal(number, forward)
    threading.Thread(target=_listen, args=(child,), daemon=True).start()
    threading.Thread(target=_watch, args=(child,), daemon=True).start()
    code = child.wait()
    _signal_group(child, signal.SIGKILL)  # what the command leaves behind
    return code if code >= 0 else 128 - code


def _listen(child: "subprocess.Popen[bytes]") -> None:
    while numbers := _read_stdin():
        for number in PASSED_ON:
            if number in numbers:
                _signal_group(child, number)
    child.terminate()
    try:
        child.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()


def _watch(child: "subprocess.Popen[bytes]") -> None:
    """Says when a signal has stopped the command, as SIGSTOP and debuggers do, and when it goes on.

    Two looks in a row, so that a short stop is not told.
    """
    seen, told = False, False
    while child.poll() is None:
        stopped = _is_stopped(child.pid)
        if stopped == seen and stopped != told:
            told = stopped
            print(STOPPED if told else RESUMED, file=sys.stderr, flush=True)
        seen = stopped
        time.sleep(LOOK_SECONDS)


def _is_stopped(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False  # it has just ended
    return status.rpartition(")")[2].split()[0] in ("T", "t")


def _read_stdin() -> bytes:
    """What comes next; empty at the end. ssh, for ranks elsewhere, holds the same end of the
    launcher's pipe and makes it return at once where nothing has come yet."""
    while True:
        select.select([0], [], [])
        try:
            return os.read(0, 4096)
        except BlockingIOError:
            continue


def _signal_group(child: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(child.pid, number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
