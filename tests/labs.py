"""The lab in tests: skipped where none can be made, always taken down, and what it may leave."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
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
    """In which a lab is made."""

    name: str
    options: tuple[str, ...] = ()
    """Of `lab up`."""
    as_user: bool = False
    """By a user without rights, where root runs the tests."""

    def __str__(self) -> str:
        return self.name

    @property
    def words(self) -> list[str]:
        """Begin a command of the harness."""
        return [*AS_USER, *HARNESS] if self.as_user else HARNESS

    @property
    def in_cell(self) -> bool:
        return self.as_user or not IS_ROOT

    def harness(
        self, *arguments: str, check: bool = True, timeout: float = 60.0
    ) -> "subprocess.CompletedProcess[str]":
        """One command as a user types it; its exit code must be 0 unless told otherwise."""
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
        """What a command prints in the first host."""
        return self.harness("lab", "run", "--", *command).stdout

    def cells(self) -> list[psutil.Process]:
        """First processes of the cells of the lab's user."""
        user = NOBODY if self.as_user else os.geteuid()
        keepers = [each for each in psutil.process_iter() if "lab.keeper" in words_of(each)]
        return [each for each in keepers if each.uids().real == user]

    def seen(self, path: Path) -> Path:
        """What the lab has there, from outside."""
        if not self.in_cell:
            return path
        # Without a cell a path that is not there, as it should be in none.
        pid = next((each.pid for each in self.cells()), 0)
        return Path(f"/proc/{pid}/root") / path.relative_to("/")


HERE = Way("here")
"""The default: with root on this machine, by ssh where sshd is installed."""
DIRECT = Way("direct", ("--ssh", "direct"))
USER = Way("user", as_user=True)
EVERY_WAY = (HERE, DIRECT, USER)

harness, in_lab = HERE.harness, HERE.run


def unable(*command: str) -> list[str]:
    """The command as a user who may make no namespaces."""
    words = [sys.executable, *AS_USER[1:], "--unable", *command]
    return [*AS_USER, *words] if IS_ROOT else words


def in_ways(*ways: Way) -> pytest.MarkDecorator:
    """For tests whose fixture `lab` makes one; those of one way follow each other."""
    return pytest.mark.parametrize("lab", ways, ids=str, indirect=True, scope="module")


def require_lab(way: Way = HERE) -> None:
    """Skips the test where no lab can be made, and where one is in use."""
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
    """Everything that a lab touches."""
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
    """None where it is missing, which is not the same as empty."""
    return sorted(os.listdir(folder)) if folder.exists() else None


def is_of_lab(process: psutil.Process) -> bool:
    return PREFIX in words_of(process)


def words_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""  # it has just ended


def processes_with(word: str) -> list[str]:
    """Of all hosts, since they are all this machine's; those whose command line holds the word."""
    return [words for each in psutil.process_iter() if word in (words := words_of(each))]


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)
