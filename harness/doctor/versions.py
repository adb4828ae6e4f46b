"""Do all hosts run the same software, and can every rank's Horovod do what this run needs?"""

import hashlib
import importlib.metadata
import os
import platform
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict

from harness.doctor.finding import Facts, Finding, limit_lines, listed
from harness.doctor.seat import Seat
from harness.errors import one_line

VERSIONS, BUILD = "versions", "horovod"
"""Names of these checks."""
MUST_BE_EQUAL = ("harness", "torch", "horovod")
"""Packages of which different versions are a fault, as ranks would compute or send different
things; for others they are a warning."""
MISSING = "none"


class VersionFacts(Facts):
    """Versions of the software that one rank runs."""

    versions: dict[str, str]


def version_facts() -> VersionFacts:
    """Versions in this process; `none` for what is not installed."""
    return VersionFacts(
        versions={
            "harness": f"source {_source_digest()}",
            "torch": str(torch.__version__),
            "horovod": _installed("horovod"),
            "torchvision": _installed("torchvision"),
            "numpy": _installed("numpy"),
            "python": platform.python_version(),
            "CUDA": torch.version.cuda or MISSING,
            "driver": _driver(),
        }
    )


def judge_versions(seats: Sequence[Seat], facts: Sequence[VersionFacts]) -> list[Finding]:
    """One finding for each package and host that differs from most hosts."""
    faults = [fault for package in facts[0].versions for fault in _differing(package, seats, facts)]
    here = facts[0].versions
    main = [f"{name} {here[name]}" for name in ("torch", "horovod", "python", "harness")]
    cards = [f"{name} {here[name]}" for name in ("CUDA", "driver") if here[name] != MISSING]
    return limit_lines(faults, Finding(check=VERSIONS, level="ok", found=listed(main + cards)))


def _differing(package: str, seats: Sequence[Seat], facts: Sequence[VersionFacts]) -> list[Finding]:
    found = {seat.host: fact.versions[package] for seat, fact in zip(seats, facts, strict=True)}
    counts = Counter(found.values())
    # The usual version is the most frequent one; in a tie, the first rank's.
    usual = max(counts, key=lambda version: (counts[version], version == found[seats[0].host]))
    others = [host for host, version in found.items() if version == usual]
    return [
        Finding(
            check=VERSIONS,
            level="fail" if package in MUST_BE_EQUAL else "warn",
            found=f"{package} is {version} on {host} and {usual} on {listed(others)}",
            advice=f"install on {host} the version of the others",
        )
        for host, version in found.items()
        if version != usual
    ]


def _installed(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return MISSING


def _source_digest() -> str:
    """Hash of this package's source files; unlike a commit it also shows uncommitted changes."""
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:8]


def _driver() -> str:
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return MISSING
    found = re.search(r"\b\d+\.\d+(\.\d+)?\b", text)
    return found[0] if found else MISSING


class Build(BaseModel):
    """How one rank's Horovod was built."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str | None
    """Version, with a local part in a mended build; None: not installed."""
    error: str | None = None
    """Why it cannot be imported; None if it can."""
    has: tuple[str, ...] = ()
    """Backends it was built with: gloo, mpi, nccl."""
    asked: tuple[str, ...] = ("gloo",)
    """Backends that the variables of this process ask for."""

    @property
    def mended(self) -> bool:
        """Whether this project's set-up built it; install/horovod.py lists its edits."""
        return "+mended" in (self.version or "")


def horovod_build() -> Build:
    """The Horovod of this process, without initialising it."""
    try:
        installed = importlib.metadata.version("horovod")
    except importlib.metadata.PackageNotFoundError:
        return Build(version=None, error="it is not installed")
    try:
        import horovod.torch as hvd
    except Exception as error:  # from the loader, the linker or Horovod: all are reported
        return Build(version=installed, error=one_line(error, 200))
    built = {"gloo": hvd.gloo_built(), "mpi": hvd.mpi_built(), "nccl": hvd.nccl_built()}
    return Build(version=installed, has=tuple(key for key in built if built[key]), asked=_asked())


def _asked() -> tuple[str, ...]:
    names = ("HOROVOD_CONTROLLER", "HOROVOD_CPU_OPERATIONS", "HOROVOD_GPU_OPERATIONS")
    chosen = {os.environ.get(name, "").lower() for name in names}
    # Without a choice, this project's launcher uses gloo.
    return tuple(sorted(chosen & {"gloo", "mpi", "nccl"})) or ("gloo",)


def judge_build(seats: Sequence[Seat], builds: Sequence[Build]) -> list[Finding]:
    """Faults of hosts whose Horovod is missing or lacks a backend; a warning if it is stock."""
    by_host = {seat.host: build for seat, build in zip(seats, builds, strict=True)}
    faults = [fault for host, build in by_host.items() for fault in _build_faults(host, build)]
    stock = [host for host, build in by_host.items() if build.version and not build.mended]
    if stock:
        faults.append(
            Finding(
                check=BUILD,
                level="warn",
                found=f"Horovod on {listed(stock)} is not the mended build: it does not warn of "
                f"stalled ranks, its process sets ignore the network interface, and waiting ranks "
                f"spin",
                advice="build it with install/horovod.py, as make setup does",
            )
        )
    has = f"{builds[0].version} with {listed(builds[0].has)}"
    return limit_lines(faults, Finding(check=BUILD, level="ok", found=has))


def _build_faults(host: str, build: Build) -> list[Finding]:
    if build.error is not None:
        found = f"Horovod cannot be used on {host} ({build.error})"
        return [Finding(check=BUILD, level="fail", found=found, advice="run make setup there")]
    missing = [kind for kind in build.asked if kind not in build.has]
    return [
        Finding(
            check=BUILD,
            level="fail",
            found=f"Horovod on {host} was built without {kind}, which this run asks for",
            advice=f"build it with {kind}, see install/horovod.py, or ask for gloo",
        )
        for kind in missing
    ]
