"""The lab in tests: skipped where none can be made, always taken down, and what it may leave."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from harness.cluster.cpu_limit import find_groups
from harness.cluster.lab import obstacle
from harness.cluster.testhost import FILES, NAMESPACES, PREFIX, STATE

ROOT = Path(__file__).resolve().parent.parent
HARNESS = [sys.executable, "-m", "harness"]


def require_lab() -> None:
    """Skips the test where no lab can be made, and where one is in use."""
    reason = obstacle()
    if reason is not None:
        pytest.skip(f"harness lab {reason}")
    if (STATE / "hosts.json").exists():
        pytest.skip("a lab is up here that somebody may use; take it down: harness lab down")


@contextmanager
def lab_of(*options: str) -> Iterator[None]:
    require_lab()
    try:
        harness("lab", "up", *options)
        yield
    finally:
        harness("lab", "down")


def harness(
    *arguments: str, check: bool = True, timeout: float = 60.0
) -> "subprocess.CompletedProcess[str]":
    """One command as a user types it; its exit code must be 0 unless told otherwise."""
    done = subprocess.run(
        [*HARNESS, *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0 or not check, f"{arguments}: {done.stdout}{done.stderr}"
    return done


def in_lab(*command: str) -> str:
    """What a command prints in the first host."""
    return harness("lab", "run", "--", *command).stdout


def traces() -> dict[str, object]:
    """Everything that a lab touches."""
    groups = find_groups(Path("/proc/mounts").read_text())
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True)
    return {
        "links": links.stdout,
        "namespaces": names(NAMESPACES),
        "files of namespaces": names(FILES),
        "run": names(Path("/run")),
        "mounts": sorted(Path("/proc/self/mounts").read_text().splitlines()),
        "hosts": Path("/etc/hosts").read_bytes(),
        "ssh": names(Path("/etc/ssh")),
        "ssh of root": names(Path.home() / ".ssh"),
        "hostname": os.uname().nodename,
        "groups": groups and sorted(path.name for path in groups.mount.iterdir() if path.is_dir()),
        "processes": sorted(words_of(each) for each in psutil.process_iter() if is_of_lab(each)),
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
