"""Boots a test host: `python -m harness.lab.boot HOST GROUP PROGRAM ...`, and prints its pid.

HOST is a LabHost as JSON. GROUP is the `cgroup.procs` file of the host's control group, or empty.
PROGRAM becomes the host's first process (pid 1 in its own pid namespace); the pid that is printed
is the one by which the caller's namespace knows it.
"""

import json
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from harness.lab.host import NAMESPACES, LabHost
from harness.lab.namespaces import (
    BIND,
    HARMLESS,
    NAMES,
    PROCESSES,
    end_with_parent,
    enter,
    mount,
    part_mounts,
    unshare,
)


def main(host: LabHost, group: str, program: Sequence[str]) -> None:
    # Until this process has entered the host's network, `_remove` could not find and kill it.
    end_with_parent()
    os.sched_setaffinity(0, host.cores)
    if group:
        Path(group).write_text("0")  # 0 stands for the writing process; children inherit the group
    enter(NAMESPACES / host.namespace)
    unshare(NAMES | PROCESSES)
    first = os.fork()
    if first:
        print(first)
        return
    os.dup2(2, 1)  # closes the pipe to the caller, which reads the pid until end of file
    socket.sethostname(host.name)
    _mount(host)
    os.chdir("/")
    os.execv(program[0], list(program))


def _mount(host: LabHost) -> None:
    part_mounts()
    mount("proc", Path("/proc"), "proc", HARMLESS)
    # Some containers forbid this mount; /sys then shows the network cards of the machine.
    with suppress(PermissionError):
        mount("sysfs", Path("/sys"), "sysfs", HARMLESS)
    for file in host.files.iterdir():
        mount(str(file), Path("/etc") / file.name, flags=BIND)


if __name__ == "__main__":
    main(LabHost.of(json.loads(sys.argv[1])), sys.argv[2], sys.argv[3:])
