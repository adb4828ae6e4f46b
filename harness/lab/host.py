"""One test host: a network namespace with a name, an address, its own files and processes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import harness
from harness.errors import UserError

PREFIX = "harnesslab"
"""Prefix of the name of everything that a lab adds to the machine, by which it is found again."""
STATE = Path("/run") / PREFIX
"""Folder of keys, configurations, the hosts' own files and logs; readable by root alone, removed
with the lab."""
NAMESPACES = Path("/run/netns")
SWITCH = f"{PREFIX}-switch"
"""Namespace of the bridge or relay: neither it nor the hosts' addresses are visible in the
machine's own network."""
NETWORK = "10.77.0"
"""First three octets of the hosts' addresses; the fourth is the host's number."""
PACKAGE = Path(harness.__file__).parent.parent
"""Working directory in which `python -m harness...` finds this package."""
GONE_SECONDS = 10.0
"""Time for killed processes to disappear."""
NO_LAB = "no lab is up; start one with: harness lab up --hosts 2"


@dataclass(frozen=True)
class LabHost:
    """One of the lab's hosts."""

    number: int
    """Counts from 1."""
    slots: int
    """Ranks that the host takes."""
    cores: tuple[int, ...]
    """Cores of this machine that the host's processes may run on."""
    direct: bool
    """Whether the host is entered directly, without an sshd."""

    @property
    def name(self) -> str:
        return f"h{self.number}"

    @property
    def address(self) -> str:
        return f"{NETWORK}.{self.number}"

    @property
    def namespace(self) -> str:
        return f"{PREFIX}-{self.name}"

    @property
    def folder(self) -> Path:
        return STATE / self.name

    @property
    def files(self) -> Path:
        """Folder of files that the host's processes, and only they, see in /etc."""
        return self.folder / "etc"

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "LabHost":
        """The host with these fields, as read from JSON, which has lists for tuples."""
        return cls(**{**values, "cores": tuple(values["cores"])})


def processes(*namespaces: str) -> list[int]:
    """Pids of all processes in these network namespaces."""
    wanted = {_identity(NAMESPACES / name) for name in namespaces}
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):  # it has just ended
            if _identity(Path(f"/proc/{pid}/ns/net")) in wanted:
                found.append(int(pid))
    return found


def _identity(namespace: Path) -> tuple[int, int]:
    # Two paths lead to the same namespace if device and inode are the same.
    found = namespace.stat()
    return found.st_dev, found.st_ino


def end_processes(namespaces: Sequence[str]) -> None:
    """Kills the processes in these network namespaces until none is left."""
    end = time.monotonic() + GONE_SECONDS
    while left := processes(*namespaces):
        if time.monotonic() > end:
            raise UserError(f"processes of the lab do not end: {sorted(left)}; try again")
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def write_files(host: LabHost, hosts: Sequence[LabHost]) -> None:
    """Writes the host's own /etc/hosts and /etc/passwd."""
    host.files.mkdir(parents=True)
    names = "".join(f"{each.address} {each.name}\n" for each in hosts)
    # torch looks up the names of IPv4 addresses in their IPv6 form, and warns if there are none.
    names += "".join(f"::ffff:{each.address} {each.name}.{PREFIX}\n" for each in hosts)
    (host.files / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
    # root's shell becomes /bin/sh, because bash reads root's start-up files for every ssh command.
    # When a host is taken down meanwhile, pyenv's leave a lock behind, and every later command
    # waits a minute for it.
    root = rf"\1:{Path.home()}:/bin/sh"
    accounts = Path("/etc/passwd").read_text(encoding="utf-8", errors="surrogateescape")
    accounts = re.sub(r"(?m)^(root:.*):[^:]*:[^:]*$", root, accounts)
    (host.files / "passwd").write_text(accounts, encoding="utf-8", errors="surrogateescape")
    # Other resolvers, such as systemd's, would answer from the machine's own files.
    switch = Path("/etc/nsswitch.conf")
    if switch.exists():
        own = re.sub(r"(?m)^hosts:.*$", "hosts: files", switch.read_text())
        (host.files / "nsswitch.conf").write_text(own)


def boot(host: LabHost, program: Sequence[str], group: Path | None) -> "subprocess.Popen[bytes]":
    """Starts the host with this program as the first process of its own process namespace.

    The host therefore sees only its own processes, and when the first one is killed, the kernel
    kills all others. `group`: the file that takes a process into the host's control group.
    """
    # -S: without site-packages, which boot.py does not need, Python starts in half the time.
    start = [sys.executable, "-S", "-m", "harness.lab.boot"]
    with _log(host).open("wb") as log:
        return subprocess.Popen(
            [*start, json.dumps(asdict(host)), str(group or ""), *program],
            cwd=PACKAGE,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )


def first_process(host: LabHost, booting: "subprocess.Popen[bytes]") -> int:
    """Pid of the host's first process, once it runs. Raises UserError if it does not start."""
    number, _ = booting.communicate()
    if booting.returncode:
        raise UserError(f"{host.name} of the lab does not start: {last_log_lines(host)}")
    return int(number)


def last_log_lines(host: LabHost) -> str:
    """The last lines that the host's first process has logged."""
    lines = _log(host).read_text(errors="replace").strip().splitlines()
    return " ".join(lines[-3:]) or "no output"


def _log(host: LabHost) -> Path:
    return host.folder / "sshd.log"
