"""Runs a command in the lab's first host over ssh; can slow hosts down in the meantime."""

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from harness.errors import UserError
from harness.lab.entry import entry_of
from harness.lab.host import NAMESPACES, LabHost
from harness.lab.lab import host_named, limits_of, running, set_share
from harness.lab.namespaces import network
from harness.lab.switch import RELAY_IS_GONE, relay_is_gone
from harness.launch import leash
from harness.launch.environment import passed_on
from harness.signals import Noted, handled, unless_ignored

STUTTER = re.compile(r"(\w+):(\d+(?:\.\d+)?)/(\d+(?:\.\d+)?)(?::(0?\.\d+))?")
SLOW_SHARE = 0.1
"""Share of a core that a stuttering host gets by default while it is slow."""


@dataclass(frozen=True)
class Stutter:
    """A host that is slow for `slow_seconds` in every `every_seconds`."""

    host: str
    slow_seconds: float
    every_seconds: float
    share: float
    """Share of one core that all the host's processes have together while it is slow."""


def parse_stutter(text: str) -> Stutter:
    """Reads `h2:2/10`, or `h2:2/10:0.3` for a share other than 0.1. Raises UserError."""
    found = STUTTER.fullmatch(text)
    if not found or not 0 < float(found[2]) < float(found[3]):
        raise UserError(
            f"--stutter {text!r} is not valid; h2:2/10 slows h2 down for 2 s in every 10 s, "
            f"h2:2/10:0.3 to 0.3 of a core"
        )
    return Stutter(found[1], float(found[2]), float(found[3]), float(found[4] or SLOW_SHARE))


def run_in_lab(command: Sequence[str], stutters: Sequence[Stutter] = ()) -> int:
    """Runs the command in the caller's folder and environment; returns its exit code.

    If this process has a terminal, the command gets one too. Otherwise its output is forwarded, it
    has no input, and signals that this process receives go to its process group; it is killed if
    this process is. Raises UserError if no lab is up or its relay has ended.
    """
    host = running()[0]
    if relay_is_gone():
        raise UserError(f"{RELAY_IS_GONE}; restart it with: harness lab rate RATE")
    for stutter in stutters:
        limits_of(host_named(stutter.host).name)
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    with _stuttering(stutters):
        code = _at_terminal(host, command) if terminal else _passing_on(host, command)
    return code if code >= 0 else 128 - code  # negative: ssh was killed when the lab went down


def _ssh(host: LabHost, command: Sequence[str], terminal: bool) -> list[str]:
    entry, variables = entry_of(host), passed_on(os.environ)
    variables["PATH"] = entry.search(variables.get("PATH", os.defpath))
    here = ["env", *(f"{name}={value}" for name, value in variables.items())]
    line = f"cd {shlex.quote(os.getcwd())} && exec {shlex.join([*here, *command])}"
    return entry.ssh(host, terminal, line)


def _at_terminal(host: LabHost, command: Sequence[str]) -> int:
    # ssh puts the terminal into raw mode and sends Ctrl-C to the command; this process ignores it.
    with handled([signal.SIGINT], Noted().arrives):
        with network(NAMESPACES / host.namespace):
            ssh = subprocess.Popen(_ssh(host, command, terminal=True))
        with handled([signal.SIGTERM, *unless_ignored(signal.SIGHUP)], lambda *_: ssh.terminate()):
            return ssh.wait()


def _passing_on(host: LabHost, command: Sequence[str]) -> int:
    held = [sys.executable, str(Path(leash.__file__)), *command]
    with network(NAMESPACES / host.namespace):
        ssh = subprocess.Popen(
            _ssh(host, held, terminal=False), stdin=subprocess.PIPE, start_new_session=True
        )
    assert ssh.stdin is not None
    to_leash = ssh.stdin.fileno()

    def pass_on(number: int, frame: FrameType | None) -> None:
        with suppress(BrokenPipeError):  # it has just ended
            os.write(to_leash, bytes([number]))

    others = [each for each in leash.PASSED_ON if each != signal.SIGHUP]
    try:
        with handled([*others, *unless_ignored(signal.SIGHUP)], pass_on):
            return ssh.wait()
    finally:
        ssh.stdin.close()


@contextmanager
def _stuttering(stutters: Sequence[Stutter]) -> Iterator[None]:
    ended = threading.Event()
    threads = [threading.Thread(target=_stutter, args=(each, ended)) for each in stutters]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def _stutter(stutter: Stutter, ended: threading.Event) -> None:
    fast_seconds = stutter.every_seconds - stutter.slow_seconds
    usual = limits_of(stutter.host).limit_of(stutter.host)
    slow = stutter.share if usual is None else min(stutter.share, usual)
    while not ended.wait(fast_seconds):
        set_share(stutter.host, slow)
        ended.wait(stutter.slow_seconds)
        set_share(stutter.host, usual)
