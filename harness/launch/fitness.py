"""Which hosts can take ranks again after a failure: quick checks on all of them at once."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from harness.errors import one_line
from harness.launch.environment import passed_on
from harness.launch.hosts import Host, is_here
from harness.launch.output import SSH_FAILED

CHECK_SECONDS = 120.0
"""Time for the checks of a host: where ranks outnumber the cores, importing torch takes long."""
CONNECT_SECONDS = 10
"""Time for ssh to reach a host."""
HOROVODRUNS = ("-o", "PasswordAuthentication=no", "-o", "StrictHostKeyChecking=no")
"""horovodrun's own options: a host that it could use must not fail because ssh has never met it."""
VISIBLE_CARDS = "CUDA_VISIBLE_DEVICES"
SSH = ("env", "ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_SECONDS}", *HOROVODRUNS)


@dataclass(frozen=True)
class Checked:
    """A host and what is wrong with it."""

    host: Host
    fault: str
    """Empty if ranks can run there."""


def check_hosts(hosts: Sequence[Host], folder: Path, cards: bool) -> list[Checked]:
    """Checks all hosts at once; `cards`: whether every rank needs a card.

    Whatever ends the block, no check is left running here.
    """
    checks = [(host, _start(host, folder, host.slots if cards else 0)) for host in hosts]
    end = time.monotonic() + CHECK_SECONDS
    try:
        return [Checked(host, _fault(check, end)) for host, check in checks]
    finally:
        for _, check in checks:
            with suppress(ProcessLookupError):
                check.kill()
            check.wait()


def _start(host: Host, folder: Path, cards: int) -> "subprocess.Popen[str]":
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(dict.fromkeys([root, *filter(None, sys.path)]))
    variables = passed_on(os.environ) | {"PYTHONPATH": path}
    # Which cards a host shows is its own affair: horovodrun passes no such variable on.
    words = [f"{name}={value}" for name, value in variables.items() if name != VISIBLE_CARDS]
    command = ["env", *words, sys.executable, "-m", "harness.doctor.quick"]
    command += [str(folder), str(cards)]
    if not _is_here(host):
        command = [*SSH, host.name, shlex.join(command)]
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )


def _is_here(host: Host) -> bool:
    try:
        return is_here(host)
    except OSError:  # its name does not resolve any more: ssh will say so
        return False


def _fault(check: "subprocess.Popen[str]", end: float) -> str:
    try:
        said = check.communicate(timeout=max(1.0, end - time.monotonic()))[0]
    except subprocess.TimeoutExpired:
        return f"it did not answer within {CHECK_SECONDS:.0f} s"
    if check.returncode == 0:
        return ""
    last = one_line("".join(said.splitlines()[-1:]), 160)
    if check.returncode == SSH_FAILED:
        return f"it cannot be reached ({last})"
    return last or f"its checks ended with exit code {check.returncode}"
