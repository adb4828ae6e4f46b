"""The first process of a cell: makes its namespaces, and waits.

`python -m harness.lab.keeper NAME SOCKET`: NAME is for those who look at processes, SOCKET the
number of the bound socket by which the cell is found: its other end names this process. Writes
READY, or why that is forbidden; ends with whoever makes the cell, unless that has said STAY.
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
    # As first process it inherits what others leave behind; so the kernel buries it.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    door.listen()
    os.write(1, READY)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (1, 2):  # so that whoever waits for READY is let go
        os.dup2(nowhere, number)
    if os.read(0, len(STAY)) == STAY:
        while True:
            door.accept()[0].close()


def _become_root() -> None:
    """In a user namespace of this user's own."""
    user, group = os.geteuid(), os.getegid()
    unshare(USERS)
    Path("/proc/self/setgroups").write_text("deny")  # else no group may be mapped
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[2])))
