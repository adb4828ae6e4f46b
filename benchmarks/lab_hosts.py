"""Test hosts for benchmarks, and commands on them whose output is shown and logged."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness.lab.own_lab import own_lab

CYCLE = "HOROVOD_CYCLE_TIME=20"
"""Longer than Horovod's default, so that its threads wake less often, because ranks outnumber the
cores. At 5 ms all variants are a tenth slower."""


class LabFailed(Exception):
    """A measurement failed; its output says why."""


@dataclass(frozen=True)
class Link:
    """The link of every host, with values as `harness lab up` takes them."""

    rate: str = "none"
    latency: str | None = None
    """One way."""
    jitter: str | None = None

    @property
    def options(self) -> list[str]:
        """The link as options of `harness lab up`."""
        words = ["--rate", self.rate]
        words += ["--latency", self.latency] if self.latency else []
        return words + (["--jitter", self.jitter] if self.jitter else [])

    @property
    def mbit(self) -> float | None:
        """The rate in Mbit/s; None without a limit."""
        return None if self.rate == "none" else float(self.rate.removesuffix("mbit"))


@dataclass(frozen=True)
class Grid:
    """Ranks on test hosts."""

    link: Link
    hosts: int = 2
    slots: int = 2
    """Ranks per host."""


@contextmanager
def lab(hosts: int, slots: int, link: Link) -> Iterator[str]:
    """Starts test hosts for the block; yields the list for -H."""
    with own_lab(hosts, slots, *link.options) as names:
        yield names


def harness(*words: str, log: Path | None = None) -> None:
    """Runs one command; its output is shown and written to the log. Raises LabFailed."""
    line = [sys.executable, "-m", "harness", *words]
    printed = []
    with subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for each in process.stdout:
            printed.append(each)
            print(each, end="", file=sys.stderr, flush=True)
    if log is not None:
        log.write_text("".join(printed))
    if process.returncode:
        raise LabFailed(f"{' '.join(words[:4])} ... ended with exit code {process.returncode}")


def in_lab(words: Sequence[str], log: Path, stutter: Sequence[str] = ()) -> None:
    """Runs a Python module in the lab; `stutter` slows hosts as `harness lab run` describes."""
    slow = [word for each in stutter for word in ("--stutter", each)]
    program = ["env", CYCLE, sys.executable, "-m", *words]
    harness("lab", "run", *slow, "--", *program, log=log)


def launched(
    folder: Path,
    name: str,
    hosts: str,
    module: str,
    words: Sequence[str],
    stutter: Sequence[str] = (),
) -> None:
    """Runs one of our benchmarks on all ranks of a lab and writes its numbers to NAME.json."""
    folder.mkdir(parents=True, exist_ok=True)
    output = ["--output", str(folder / f"{name}.json")]
    program = [sys.executable, "-m", f"benchmarks.{module}", *words, *output]
    launch = ["harness", "launch", "-H", hosts, "--folder", str(folder / "logs"), "--"]
    in_lab([*launch, *program], folder / f"{name}.log", stutter)


def on_all_ranks(
    folder: Path,
    name: str,
    grid: Grid,
    module: str,
    words: Sequence[str],
    stutter: Sequence[str] = (),
) -> None:
    """Runs a benchmark in a new lab, unless its numbers exist already."""
    if (folder / f"{name}.json").exists():
        return
    with lab(grid.hosts, grid.slots, grid.link) as hosts:
        launched(folder, name, hosts, module, words, stutter)


def rates(
    folder: Path,
    name: str,
    grid: Grid,
    experiments: Sequence[str],
    arguments: Sequence[str] = (),
    stutter: Sequence[str] = (),
) -> None:
    """Measures the throughput of experiments that take turns in one run."""
    on_all_ranks(folder, name, grid, "throughput", [*experiments, *arguments], stutter)
