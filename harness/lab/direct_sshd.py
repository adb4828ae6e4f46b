"""In place of sshd, the first process of a host that is entered directly: runs what it is asked to.

`python direct_sshd.py DOOR PROGRAMS`. DOOR becomes a socket at which direct_ssh.py hands over the
files that a command gets as input, output and error, and then a Request; it gets one byte back, the
command's exit code. PROGRAMS is a folder that stands first on commands' PATH. Needs no packages.
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
FAILED = 255
"""ssh's exit code where the command has none: a signal ended it, or the host did."""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Request:
    """What is said after the files."""

    line: str
    """For /bin/sh; empty for a shell to talk to."""
    terminal: str
    """TERM of the terminal that all three files are; empty where they are no terminal."""


def main(door: Path, programs: str) -> None:
    # As first process it inherits what others leave behind; so the kernel buries it.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    beside = door.with_suffix(".new")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(beside))
        server.listen(WAITING)
        beside.rename(door)  # whoever sees it is let in
        while True:
            guest, _ = server.accept()
            with guest:
                if os.fork() == 0:
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    _serve(guest, programs)
                    return


def _serve(guest: socket.socket, programs: str) -> None:
    _, files, _, _ = socket.recv_fds(guest, 1, 3)
    with guest.makefile("rb") as said:
        request = Request(**json.loads(said.read()))
    command = _start(request, files, programs)
    for file in files:
        os.close(file)  # they end with the command
    code = command.wait()
    with suppress(BrokenPipeError):  # whoever asked has gone
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
