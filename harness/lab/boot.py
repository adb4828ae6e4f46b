"""Boots a test host: `python -m harness.lab.boot HOST GROUP PROGRAM ...`, and tells its number.

HOST is a LabHost as JSON, GROUP a file that takes processes into a control group, or empty. PROGRAM
becomes the host's first process, and its number here is printed.
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
    end_with_parent()  # before it is in the host's network, nobody would find it
    os.sched_setaffinity(0, host.cores)
    if group:
        Path(group).write_text("0")  # this process
    enter(NAMESPACES / host.namespace)
    unshare(NAMES | PROCESSES)
    first = os.fork()
    if first:
        print(first)
        return
    os.dup2(2, 1)  # so that whoever waits for the number is let go
    socket.sethostname(host.name)
    _mount(host)
    os.chdir("/")
    os.execv(program[0], list(program))


def _mount(host: LabHost) -> None:
    part_mounts()
    mount("proc", Path("/proc"), "proc", HARMLESS)
    with suppress(
        PermissionError
    ):  # some containers forbid it: then /sys shows the machine's cards
        mount("sysfs", Path("/sys"), "sysfs", HARMLESS)
    for file in host.files.iterdir():
        mount(str(file), Path("/etc") / file.name, flags=BIND)


if __name__ == "__main__":
    main(LabHost.of(json.loads(sys.argv[1])), sys.argv[2], sys.argv[3:])
