"""The first process of a cell: makes the cell's namespaces, and waits.

`python -m harness.lab.keeper NAME SOCKET`: NAME only identifies the process in lists of processes.
SOCKET is the file descriptor of the bound socket by which the cell is found: whoever connects
learns this process's pid from the kernel. Writes READY, or an error if namespaces are forbidden.
Ends when its standard input does, with the process that makes the cell, unless it reads STAY.
"""

import os
import signal
import socket
import sys
from pathlib import Path

from harness.lab.namespaces import (
    HARMLESS,
    NAMES,
    NETWORK,
    PROCESSES,
    USERS,
    mount,
    part_mounts,
    unshare,
)

READY, STAY = b"ready\n", b"stay\n"


def main(door: socket.socket) -> None:
    _become_root()
    unshare(NETWORK | NAMES | PROCESSES)
    if os.fork():
        return
    part_mounts()
    mount("proc", Path("/proc"), "proc", HARMLESS)
    mount("tmpfs", Path("/run"), "tmpfs")
    os.chdir("/")
    # Pid 1 inherits orphaned processes. With SIGCHLD ignored the kernel reaps them.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    door.listen()
    os.write(1, READY)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (1, 2):  # closes the pipe to the process that reads READY until end of file
        os.dup2(nowhere, number)
    if os.read(0, len(STAY)) == STAY:
        while True:
            door.accept()[0].close()


def _become_root() -> None:
    """Makes this process root in a new user namespace: uid 0 there is this user outside."""
    user, group = os.geteuid(), os.getegid()
    unshare(USERS)
    Path("/proc/self/setgroups").write_text("deny")  # the kernel's condition for gid_map
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[2])))
