"""Runs one command and ends it, gently at first, when the process that started it is gone.

`python -m harness.launch.leash [--pulse] [--in FOLDER] COMMAND ...` on the rank's host. Its
standard input is a pipe from the launcher, through ssh for ranks on other hosts, and ends when the
launcher ends or closes it. This is needed because horovodrun sends no signals through ssh, and goes
on if the process that started it is killed. ssh forwards no signals either, so a byte on standard
input is the number of a signal for the command's process group. A line on standard error reports
that the command's process is stopped, which the process itself cannot report. With `--pulse`, lines
on standard output report what a rank that shows its pulse does, and once it is stuck it is asked
for the stacks of its threads. `--in` names the command's working directory: horovodrun would leave
a folder's name unquoted in the line for a shell on another host.
"""

import os
import select
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType

from harness.parallel.pulse import STACKS, VARIABLE, Report, Watched

GRACE_SECONDS = 5.0
"""Time between SIGTERM and SIGKILL for the command."""
FORWARDED = (signal.SIGINT, signal.SIGTERM)
"""Signals that this process forwards to the command."""
PASSED_ON = (*FORWARDED, signal.SIGHUP, signal.SIGUSR1)
"""Signals that standard input may send to the command's process group. Of the leashes on one host,
which share a pipe, one gets it."""
LOOK_SECONDS = 2.0
"""Time between two looks at the command."""
PULSE, IN = "--pulse", "--in"
STOPPED, RESUMED = "leash: this rank's process is stopped", "leash: this rank's process runs again"


def main(command: list[str]) -> int:
    """Runs the command; returns its exit code, or 128 + signal as a shell does."""
    # A shell in the background ignores these signals, and children inherit that.
    for number in FORWARDED:
        signal.signal(number, signal.SIG_DFL)
    watched, command = (Watched(), command[1:]) if command[0] == PULSE else (None, command)
    if command[0] == IN:
        _change_to(command[1])
        command = command[2:]
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        process_group=0,
        pass_fds=[watched.descriptor] if watched else [],
        env=os.environ | ({VARIABLE: str(watched.descriptor)} if watched else {}),
    )

    def forward(number: int, frame: FrameType | None) -> None:
        child.send_signal(number)

    for number in FORWARDED:
        signal.signal(number, forward)
    threading.Thread(target=_listen, args=(child,), daemon=True).start()
    ended = threading.Event()
    watch = threading.Thread(target=_watch, args=(child, watched, ended), daemon=True)
    watch.start()
    code = child.wait()
    ended.set()
    watch.join(LOOK_SECONDS)  # it may have to report that the rank is not watched any more
    _signal_group(child, signal.SIGKILL)  # processes that the command leaves behind
    return code if code >= 0 else 128 - code


def _change_to(folder: str) -> None:
    try:
        os.chdir(folder)
    except OSError as error:
        line = f"warning: {socket.gethostname()} has no folder {folder} ({error.strerror}); "
        line += f"the rank starts in {os.getcwd()}"
        print(line, file=sys.stderr, flush=True)


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


def _watch(
    child: "subprocess.Popen[bytes]", watched: Watched | None, ended: threading.Event
) -> None:
    """Reports on the command until it ends.

    That it is stopped, as by SIGSTOP or a debugger, or runs again, counts once two looks in a row
    have seen it, so that short stops are not reported.
    """
    seen, reported = False, False
    while child.poll() is None:
        stopped = _is_stopped(watched.pid if watched and watched.pid else child.pid)
        if stopped == seen and stopped != reported:
            reported = stopped
            print(STOPPED if reported else RESUMED, file=sys.stderr, flush=True)
        seen = stopped
        if watched:
            _report(watched, reported)
        ended.wait(LOOK_SECONDS)
    if watched and watched.latest.limit:
        _send(replace(watched.latest, limit=0.0))


def _report(watched: Watched, stopped: bool) -> None:
    before, report = watched.latest, watched.report(stopped)
    if report.limit or before.limit:  # a rank that is not watched any more is reported once
        _send(report)
    if report.stuck and not before.stuck:
        with suppress(ProcessLookupError):
            os.kill(watched.pid, STACKS)


def _send(report: Report) -> None:
    os.write(sys.stdout.fileno(), f"{report.line()}\n".encode())


def _is_stopped(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False  # it has just ended
    # The name in parentheses may hold blanks; the state follows it: T stopped, t traced.
    return status.rpartition(")")[2].split()[0] in ("T", "t")


def _read_stdin() -> bytes:
    """The next bytes of standard input; empty at its end.

    ssh, which serves ranks on other hosts, shares this end of the launcher's pipe and sets it to
    non-blocking, so a read may find nothing yet.
    """
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
