"""The lab in tests: skips tests if none can be made, takes labs down, and finds their traces."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil
import pytest
from pyroute2 import IPRoute

from harness.lab.cpu_limit import find_groups
from harness.lab.host import NAMESPACES, PREFIX
from harness.lab.lab import HOSTS, obstacle
from tests.as_user import NOBODY

ROOT = Path(__file__).resolve().parent.parent
HARNESS = [sys.executable, "-m", "harness"]
AS_USER = [sys.executable, str(ROOT / "tests" / "as_user.py")]
IS_ROOT = os.geteuid() == 0


@dataclass(frozen=True)
class Way:
    """A way to make a lab."""

    name: str
    options: tuple[str, ...] = ()
    """Options of `lab up`."""
    as_user: bool = False
    """Whether a user without rights makes it, if root runs the tests."""

    def __str__(self) -> str:
        return self.name

    @property
    def words(self) -> list[str]:
        """The first words of a command of the harness."""
        return [*AS_USER, *HARNESS] if self.as_user else HARNESS

    @property
    def in_cell(self) -> bool:
        return self.as_user or not IS_ROOT

    def harness(
        self, *arguments: str, check: bool = True, timeout: float = 60.0
    ) -> "subprocess.CompletedProcess[str]":
        """Runs a command as a user types it; `check`: its exit code must be 0."""
        done = subprocess.run(
            [*self.words, *arguments],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0 or not check, f"{arguments}: {done.stdout}{done.stderr}"
        return done

    def up(self, *options: str) -> None:
        self.harness("lab", "up", *self.options, *options)

    def run(self, *command: str) -> str:
        """Standard output of a command that is run in the first host."""
        return self.harness("lab", "run", "--", *command).stdout

    def cells(self) -> list[psutil.Process]:
        """First processes of the cells of the user who makes the lab."""
        user = NOBODY if self.as_user else os.geteuid()
        keepers = [each for each in psutil.process_iter() if "harness.lab.keeper" in words_of(each)]
        return [each for each in keepers if each.uids().real == user]

    def seen(self, path: Path) -> Path:
        """Path by which the lab's file can be read from outside."""
        if not self.in_cell:
            return path
        roots = [Path(f"/proc/{each.pid}/root") for each in self.cells()]
        # Before a cell has mounted its own /run, a lab of the machine would be seen there.
        own = [root for root in roots if _has_own_run(root)]
        # Without a cell, pid 0 gives a path that does not exist.
        return (own or [Path("/proc/0/root")])[0] / path.relative_to("/")


def _has_own_run(root: Path) -> bool:
    try:
        return (root / "run").stat().st_dev != Path("/run").stat().st_dev
    except FileNotFoundError:  # it has ended
        return False


HERE = Way("here")
"""The default: with root in this machine's namespaces, entered by ssh if sshd is installed."""
DIRECT = Way("direct", ("--ssh", "direct"))
USER = Way("user", as_user=True)
EVERY_WAY = (HERE, DIRECT, USER)

harness, in_lab = HERE.harness, HERE.run


def unable(*command: str) -> list[str]:
    """The command, run by a user who may not make namespaces."""
    words = [sys.executable, *AS_USER[1:], "--unable", *command]
    return [*AS_USER, *words] if IS_ROOT else words


def in_ways(*ways: Way) -> pytest.MarkDecorator:
    """Runs a test in each way of its fixture `lab`; tests with the same way run in sequence."""
    return pytest.mark.parametrize("lab", ways, ids=str, indirect=True, scope="module")


def require_lab(way: Way = HERE) -> None:
    """Skips the test if no lab can be made, or if one is in use."""
    if way is not HERE and not IS_ROOT:
        pytest.skip("without root a lab is made in one way")
    if way.seen(HOSTS).exists():
        pytest.skip("a lab is up here that somebody may use; take it down: harness lab down")
    reason = _obstacle(way)
    if reason is not None:
        pytest.skip(reason)


@cache
def _obstacle(way: Way) -> str | None:
    if not way.in_cell:
        reason = obstacle()
        return reason and f"harness lab {reason}"
    done = way.harness("lab", "up", "--hosts", "1", check=False)
    way.harness("lab", "down", check=False)
    return None if done.returncode == 0 else (done.stderr.splitlines() or ["it does not start"])[-1]


@contextmanager
def lab_of(*options: str, way: Way = HERE) -> Iterator[Way]:
    require_lab(way)
    try:
        way.up(*options)
        yield way
    finally:
        way.harness("lab", "down")


def traces() -> dict[str, object]:
    """Everything on the machine that a lab touches."""
    groups = find_groups(Path("/proc/mounts").read_text())
    with IPRoute() as machine:
        links = [(each["index"], each.get("ifname"), each["state"]) for each in machine.get_links()]
    return {
        "links": links,
        "namespaces": names(NAMESPACES),
        "files of namespaces": names(Path("/etc/netns")),
        "run": names(Path("/run")),
        "mounts": sorted(Path("/proc/self/mounts").read_text().splitlines()),
        "hosts": Path("/etc/hosts").read_bytes(),
        "ssh": names(Path("/etc/ssh")),
        "ssh of root": names(Path.home() / ".ssh"),
        "hostname": os.uname().nodename,
        "groups": groups and sorted(path.name for path in groups.mount.iterdir() if path.is_dir()),
        "processes": sorted(words_of(each) for each in psutil.process_iter() if is_of_lab(each)),
        "sockets": [
            line.split()[-1]
            for line in Path("/proc/net/unix").read_text().splitlines()
            if PREFIX in line
        ],
    }


def names(folder: Path) -> list[str] | None:
    """Names in the folder; None if it does not exist, which is not the same as empty."""
    return sorted(os.listdir(folder)) if folder.exists() else None


def is_of_lab(process: psutil.Process) -> bool:
    return PREFIX in words_of(process)


def words_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""  # it has just ended


def processes_with(word: str) -> list[str]:
    """Command lines that contain the word, of processes in all hosts and on this machine."""
    return [words for each in psutil.process_iter() if word in (words := words_of(each))]
