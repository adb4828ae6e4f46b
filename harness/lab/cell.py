"""The cell: namespaces in which a user without root makes the lab just as root makes it.

A cell is a user namespace in which the user is root, and one namespace each for mounts, networks,
host names and processes. It lasts as long as its first process (keeper.py), which only waits. When
that process is killed, the kernel kills everything that runs in the cell, and nothing of it is
left. Commands find the cell by an abstract socket name in the network namespace that it was made
from, so no file has to be kept.
"""

import os
import select
import signal
import socket
import struct
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from harness.errors import UserError
from harness.lab.host import GONE_SECONDS, NO_LAB, PACKAGE, PREFIX
from harness.lab.keeper import READY, STAY
from harness.lab.namespaces import end_of, end_with_parent, enter
from harness.lab.turn import turn
from harness.leaving import leave

CREDENTIALS = struct.Struct("3i")
"""`struct ucred`: pid, uid and gid of the process at a socket's other end."""
EVERYBODY = ("0", "0", str(2**32 - 1))
"""Fields of /proc/self/uid_map in the machine's initial user namespace."""
KINDS = ("user", "mnt", "net", "uts", "pid")
"""Namespaces to enter, in this order: entering the user namespace gives the right to enter the
others."""
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""Signals that are forwarded to the command in the cell."""
FORBIDDING = {
    "user/max_user_namespaces": ("0", "10000"),
    "kernel/unprivileged_userns_clone": ("0", "1"),
    "kernel/apparmor_restrict_unprivileged_userns": ("1", "0"),
}
"""Setting in /proc/sys -> a value that forbids user namespaces, and one that allows them."""


@dataclass(frozen=True)
class Cell:
    """The cell of this user; a user has at most one."""

    first: int
    """Pid of the cell's first process."""

    def run(self, command: Callable[[], int]) -> int:
        """Runs the command in the cell, in this process's working directory; returns its exit code.

        Signals that reach this process are forwarded to the command, which ends with this process.
        Call it from the main thread of a process that has no other. Afterwards this process is
        itself in the cell's namespaces.
        """
        here = os.getcwd()
        try:
            enter(*(Path(f"/proc/{self.first}/ns/{kind}") for kind in KINDS))
        except OSError as error:
            raise UserError(f"the lab cannot be entered: {error}; run: harness lab down") from error
        # Blocked before the fork: a signal that came in between is pending, and `_exit_code` gets
        # it from sigwaitinfo. The child restores the mask that was there before.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {*PASSED_ON, signal.SIGCHLD})
        try:
            child = os.fork()
            if child == 0:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
                _run_and_exit(command, here)
            return _exit_code(child)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def end(self) -> None:
        """Kills the cell's first process and waits until all others have ended with it."""
        with suppress(ProcessLookupError):  # another command has just ended it
            end = end_of(self.first)
            os.kill(self.first, signal.SIGKILL)
            ended, _, _ = select.select([end], [], [], GONE_SECONDS)
            os.close(end)
            if not ended:
                raise UserError(f"the lab's first process {self.first} does not end; try again")


def is_needed() -> bool:
    """Whether a lab of this user has to be in a cell: without root it has."""
    return os.geteuid() != 0


def find() -> Cell | None:
    """The cell of this user, if there is one. Raises UserError if its name is somebody else's."""
    with socket.socket(socket.AF_UNIX) as door:
        try:
            door.connect(_name())
        except ConnectionRefusedError:
            return None
        credentials = door.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
    first, user, _ = CREDENTIALS.unpack(credentials)
    if user != os.geteuid() or first == 0:
        raise UserError(
            f"the name of your lab, {_name()[1:]}, is held by a process of user {user} that is "
            "not yours or is in another container; end that process first"
        )
    return Cell(first)


def found() -> Cell:
    """The cell of this user. Raises UserError if there is none."""
    cell = find()
    if cell is None:
        raise UserError(NO_LAB)
    return cell


def run_in_new(command: Callable[[], int]) -> int:
    """Runs the command in a new cell, which replaces an earlier one; returns its exit code.

    The cell stays up if the exit code is 0. Otherwise nothing of it is left, even if this process
    is killed.
    """
    with turn():
        before = find()
        if before is not None:
            before.end()
        with _keeper() as keeper:
            cell = found()
            code = 1
            try:
                code = cell.run(command)
            finally:
                if code != 0:
                    cell.end()
            if code == 0:
                keeper.communicate(STAY)
        return code


def end_after(command: Callable[[], int]) -> int:
    """Runs a last command in the cell, then ends the cell; returns the exit code, 0 without one."""
    with turn():
        cell = find()
        if cell is None:
            return 0
        try:
            return cell.run(command)
        finally:
            cell.end()


def place() -> str:
    """Describes, for users, whose namespaces this process is in."""
    users = Path("/proc/self/uid_map")
    _, user, count = users.read_text().split()[:3] if users.exists() else EVERYBODY
    if count == EVERYBODY[2]:
        return "with root in the machine's namespaces"
    return f"in a user namespace of uid {user}"


@contextmanager
def _keeper() -> Iterator["subprocess.Popen[bytes]"]:
    """Makes a cell. Raises UserError if this machine does not let users make namespaces."""
    words = [sys.executable, "-S", "-m", "harness.lab.keeper", PREFIX]
    with socket.socket(socket.AF_UNIX) as door:
        try:
            door.bind(_name())
        except OSError as error:
            raise UserError(
                f"the name of your lab, {_name()[1:]}, is held by a lab that is just ending, or by "
                "another user; try again"
            ) from error
        keeper = subprocess.Popen(
            [*words, str(door.fileno())],
            cwd=PACKAGE,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[door.fileno()],
            start_new_session=True,
        )
    with keeper:
        assert keeper.stdout is not None
        answer = keeper.stdout.read()
        if answer != READY:
            last = (answer.decode(errors="replace").strip().splitlines() or ["no output"])[-1]
            raise UserError(
                f"harness lab without root needs a user namespace: {_advice()} ({last})"
            )
        yield keeper


def _advice() -> str:
    """What forbids user namespaces on this machine, and how to allow them."""
    for name, (forbids, allows) in FORBIDDING.items():
        file = Path("/proc/sys", name)
        if file.exists() and file.read_text().strip() == forbids:
            setting = name.replace("/", ".")
            return (
                f"{setting}={forbids} forbids it; `sysctl {setting}={allows}` by root allows it, "
                "or run it with sudo"
            )
    if "Seccomp:\t2" in Path("/proc/self/status").read_text():
        return (
            "a system call filter, as containers have, forbids it; start the container with "
            "--privileged, or with --security-opt seccomp=unconfined --security-opt "
            "systempaths=unconfined --security-opt apparmor=unconfined"
        )
    return "this machine or container forbids it; run it with sudo"


def _name() -> str:
    """Socket name of the user's cell; the leading zero byte makes it abstract (without a file)."""
    return f"\0{PREFIX}-{os.geteuid()}"


def _run_and_exit(command: Callable[[], int], where: str) -> NoReturn:
    """Runs the command as the child of a fork and exits: none of the parent's code goes on here."""

    def run() -> int:
        end_with_parent()
        try:
            os.chdir(where)
        except OSError as error:
            raise UserError(f"the lab has no folder {where}; change to another") from error
        return command()

    code = 1
    try:
        code = leave(run)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _exit_code(child: int) -> int:
    """Waits for the child, to which it forwards signals; 128 + signal if a signal ended it."""
    while True:
        received = signal.sigwaitinfo({*PASSED_ON, signal.SIGCHLD})
        if received.si_signo == signal.SIGCHLD:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code
        # si_code <= 0: sent by a process with kill(). Signals of a terminal have si_code > 0 and go
        # to the whole process group, so the child has received them already.
        elif received.si_code <= 0:
            os.kill(child, received.si_signo)
