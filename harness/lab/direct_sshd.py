"""The first process of a host that is entered directly: takes sshd's place and runs commands.

`python direct_sshd.py DOOR PROGRAMS`. DOOR becomes a socket at which direct_ssh.py hands over the
files that a command gets as input, output and error, and then a Request; it receives one byte, the
command's exit code. PROGRAMS is the first folder on the commands' PATH. Needs no packages.
"""

import fcntl
import json
import os
import pwd
import signal
import socket
import subprocess
import sys
import termios
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

WAITING = 512
"""Connections that may wait to be accepted."""
FAILED = 255
"""Exit code of ssh if the command has none, because a signal or the host's end stopped it."""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Request:
    """The message that follows the files."""

    line: str
    """Command line for /bin/sh; empty for an interactive shell."""
    terminal: str
    """TERM, if all three files are a terminal; else empty."""


def main(door: Path, programs: str) -> None:
    # Pid 1 inherits orphaned processes. With SIGCHLD ignored the kernel reaps them.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    beside = door.with_suffix(".new")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(beside))
        server.listen(WAITING)
        beside.rename(door)  # under its final name only once it accepts connections
        while True:
            guest, _ = server.accept()
            with guest:
                if os.fork() == 0:
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    _serve(guest, programs)
                    return


def _serve(guest: socket.socket, programs: str) -> None:
    _, files, _, _ = socket.recv_fds(guest, 1, 3)
    with guest.makefile("rb") as stream:
        request = Request(**json.loads(stream.read()))
    command = _start(request, files, programs)
    for file in files:
        os.close(file)  # the command has the only copies: they end with it
    code = command.wait()
    with suppress(BrokenPipeError):  # the client has gone
        guest.send(bytes([code if code >= 0 else FAILED]))


def _start(request: Request, files: Sequence[int], programs: str) -> "subprocess.Popen[bytes]":
    account = pwd.getpwuid(os.geteuid())
    variables = {
        "HOME": account.pw_dir,
        "LOGNAME": account.pw_name,
        "PATH": f"{programs}:{PATH}",
        "SHELL": "/bin/sh",
        "USER": account.pw_name,
    }
    take_terminal = partial(fcntl.ioctl, 0, termios.TIOCSCTTY, 0)
    return subprocess.Popen(
        ["sh", "-c", request.line] if request.line else ["-sh"],
        executable="/bin/sh",
        cwd=account.pw_dir if os.access(account.pw_dir, os.X_OK) else "/",
        env=variables | ({"TERM": request.terminal} if request.terminal else {}),
        stdin=files[0],
        stdout=files[1],
        stderr=files[2],
        start_new_session=True,
        preexec_fn=take_terminal if request.terminal else None,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
