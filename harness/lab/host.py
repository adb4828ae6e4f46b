"""One test host: a network namespace with a name, an address, files of its own and processes."""

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
"""Of everything that a lab adds to the machine: by it all of it is found again."""
STATE = Path("/run") / PREFIX
"""Keys, configurations, the hosts' own files and logs; for root alone, gone with the lab."""
NAMESPACES = Path("/run/netns")
SWITCH = f"{PREFIX}-switch"
"""Namespace of the bridge or relay: the machine's own network sees neither it nor the hosts'
addresses."""
NETWORK = "10.77.0"
PACKAGE = Path(harness.__file__).parent.parent
"""Where `python -m harness...` finds this package."""
GONE_SECONDS = 10.0
NO_LAB = "no lab is up; start one with: harness lab up --hosts 2"


@dataclass(frozen=True)
class LabHost:
    """One of the lab's hosts, by its number from 1."""

    number: int
    slots: int
    """Ranks it takes."""
    cores: tuple[int, ...]
    """Of this machine, all that its processes run on."""
    direct: bool
    """Entered directly: no sshd runs there."""

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
        """What lies here stands in /etc for the host's processes, and only for them."""
        return self.folder / "etc"

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "LabHost":
        """Of its fields, as JSON keeps them."""
        return cls(**{**values, "cores": tuple(values["cores"])})


def processes(*namespaces: str) -> list[int]:
    """All in these networks."""
    wanted = {_identity(NAMESPACES / name) for name in namespaces}
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):  # it has just ended
            if _identity(Path(f"/proc/{pid}/ns/net")) in wanted:
                found.append(int(pid))
    return found


def _identity(namespace: Path) -> tuple[int, int]:
    found = namespace.stat()
    return found.st_dev, found.st_ino


def end_processes(namespaces: Sequence[str]) -> None:
    """Kills all that run there until nothing does."""
    end = time.monotonic() + GONE_SECONDS
    while left := processes(*namespaces):
        if time.monotonic() > end:
            raise UserError(f"processes of the lab do not end: {sorted(left)}; try again")
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def write_files(host: LabHost, hosts: Sequence[LabHost]) -> None:
    """The host's own names and accounts."""
    host.files.mkdir(parents=True)
    names = "".join(f"{each.address} {each.name}\n" for each in hosts)
    # What torch asks for, and warns of where nobody answers.
    names += "".join(f"::ffff:{each.address} {each.name}.{PREFIX}\n" for each in hosts)
    (host.files / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
    # bash reads root's start-up files for every command of ssh; a host's end cuts them short:
    # pyenv's then leave a lock behind, for which every later command waits a minute.
    root = rf"\1:{Path.home()}:/bin/sh"
    accounts = Path("/etc/passwd").read_text(encoding="utf-8")
    (host.files / "passwd").write_text(re.sub(r"(?m)^(root:.*):[^:]*:[^:]*$", root, accounts))


def boot(host: LabHost, program: Sequence[str], group: Path | None) -> "subprocess.Popen[bytes]":
    """Starts the host: this program is the first process of a process namespace of its own.

    So the host sees its own processes alone, and when the first is killed all of them are. `group`:
    a file that takes a process into the host's control group.
    """
    # Without packages, which it does not need, Python starts in half the time.
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
    """Its number here, once it runs."""
    number, _ = booting.communicate()
    if booting.returncode:
        raise UserError(f"{host.name} of the lab does not start: {last_words(host)}")
    return int(number)


def last_words(host: LabHost) -> str:
    """Of its first process."""
    said = _log(host).read_text(errors="replace").strip().splitlines()
    return " ".join(said[-3:]) or "no word"


def _log(host: LabHost) -> Path:
    return host.folder / "sshd.log"
