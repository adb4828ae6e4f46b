"""The cell: namespaces for whoever is not root, in which the lab is made as root makes it.

A user namespace in which the user is root, and one each for mounts, networks, names and processes.
They last as long as the cell's first process (keeper.py), which only waits. When that is killed the
kernel ends all that runs in the cell, and nothing is left of what was made there. Commands find the
cell by a socket's abstract name in the network that it was made from, and need no file.
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
"""Process, user and group at a socket's other end."""
EVERYBODY = ("0", "0", str(2**32 - 1))
"""How the machine's own user namespace maps users."""
KINDS = ("user", "mnt", "net", "uts", "pid")
"""The first gives the right to enter the others."""
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
FORBIDDING = {
    "user/max_user_namespaces": ("0", "10000"),
    "kernel/unprivileged_userns_clone": ("0", "1"),
    "kernel/apparmor_restrict_unprivileged_userns": ("1", "0"),
}
"""Setting in /proc/sys -> the value that forbids users their namespaces, and one that does not."""


@dataclass(frozen=True)
class Cell:
    """Of this user; there is one at most."""

    first: int
    """Number of its first process."""

    def run(self, command: Callable[[], int]) -> int:
        """Exit code of the command, run in the cell where this process stands.

        Signals that reach this process go to the command, and it ends with this process. For the
        main thread, the only one; afterwards this process is in the cell's namespaces itself.
        """
        here = os.getcwd()
        try:
            enter(*(Path(f"/proc/{self.first}/ns/{kind}") for kind in KINDS))
        except OSError as error:
            raise UserError(f"the lab cannot be entered: {error}; run: harness lab down") from error
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
        """Kills its first process, and waits until all others have ended with that."""
        with suppress(ProcessLookupError):  # another command has ended it
            end = end_of(self.first)
            os.kill(self.first, signal.SIGKILL)
            ended, _, _ = select.select([end], [], [], GONE_SECONDS)
            os.close(end)
            if not ended:
                raise UserError(f"the lab's first process {self.first} does not end; try again")


def is_needed() -> bool:
    return os.geteuid() != 0


def find() -> Cell | None:
    with socket.socket(socket.AF_UNIX) as door:
        try:
            door.connect(_name())
        except ConnectionRefusedError:
            return None
        told = door.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
    first, user, _ = CREDENTIALS.unpack(told)
    if user != os.geteuid() or first == 0:
        raise UserError(
            f"the name of your lab, {_name()[1:]}, belongs to a process of user {user} that is "
            "none of yours, or in another container; end that first"
        )
    return Cell(first)


def found() -> Cell:
    """Raises UserError where there is none."""
    cell = find()
    if cell is None:
        raise UserError(NO_LAB)
    return cell


def run_in_new(command: Callable[[], int]) -> int:
    """Exit code of a command in a new cell, in place of the one before.

    The cell stays where that is 0; else nothing of it is left, also when this process is killed.
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
    """Exit code of a last command in the cell; 0 where there is none."""
    with turn():
        cell = find()
        if cell is None:
            return 0
        try:
            return cell.run(command)
        finally:
            cell.end()


def place() -> str:
    """Whose namespaces this process is in."""
    users = Path("/proc/self/uid_map")
    _, user, count = users.read_text().split()[:3] if users.exists() else EVERYBODY
    if count == EVERYBODY[2]:
        return "with root in the machine's namespaces"
    return f"in a user namespace of uid {user}"


@contextmanager
def _keeper() -> Iterator["subprocess.Popen[bytes]"]:
    """Makes a cell. Raises UserError where this machine lets users make no such namespaces."""
    words = [sys.executable, "-S", "-m", "harness.lab.keeper", PREFIX]
    with socket.socket(socket.AF_UNIX) as door:
        try:
            door.bind(_name())
        except OSError as error:
            raise UserError(
                f"the name of your lab, {_name()[1:]}, is taken by a lab that just ends, or by "
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
        said = keeper.stdout.read()
        if said != READY:
            last = (said.decode(errors="replace").strip().splitlines() or ["no word"])[-1]
            raise UserError(
                f"harness lab without root needs a user namespace: {_advice()} ({last})"
            )
        yield keeper


def _advice() -> str:
    """What forbids the cell, and what allows it."""
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
            "a filter of system calls forbids it, as containers have one; start the container with "
            "--security-opt seccomp=unconfined, or run it as root"
        )
    return "this machine or container forbids it; run it with sudo"


def _name() -> str:
    return f"\0{PREFIX}-{os.geteuid()}"


def _run_and_exit(command: Callable[[], int], where: str) -> NoReturn:
    """As the child that a fork made: nothing of its parent's goes on here."""

    def run() -> int:
        end_with_parent()
        try:
            os.chdir(where)
        except OSError as error:
            raise UserError(f"the lab has no folder {where}; go to another") from error
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
    while True:
        received = signal.sigwaitinfo({*PASSED_ON, signal.SIGCHLD})
        if received.si_signo == signal.SIGCHLD:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code
        elif received.si_code <= 0:  # from a process; those of a terminal have reached the child
            os.kill(child, received.si_signo)
