"""Do all hosts run the same software? Names the host that differs, and both versions."""

import hashlib
import importlib.metadata
import platform
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from harness.doctor.finding import Facts, Finding, listed, told
from harness.doctor.seat import Seat

CHECK = "versions"
MUST_BE_EQUAL = ("harness", "torch", "horovod")
"""Ranks of other versions of these would compute or send something else; the rest is a warning."""
MISSING = "none"


class VersionFacts(Facts):
    versions: dict[str, str]


def version_facts() -> VersionFacts:
    """Of this process; what is not there is `none`."""
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
    faults = [fault for package in facts[0].versions for fault in _differing(package, seats, facts)]
    here = facts[0].versions
    main = [f"{name} {here[name]}" for name in ("torch", "horovod", "python", "harness")]
    cards = [f"{name} {here[name]}" for name in ("CUDA", "driver") if here[name] != MISSING]
    return told(faults, Finding(check=CHECK, level="ok", found=listed(main + cards)))


def _differing(package: str, seats: Sequence[Seat], facts: Sequence[VersionFacts]) -> list[Finding]:
    found = {seat.host: fact.versions[package] for seat, fact in zip(seats, facts, strict=True)}
    counts = Counter(found.values())
    # Of as many hosts on both sides, the first rank's is the usual one.
    usual = max(counts, key=lambda version: (counts[version], version == found[seats[0].host]))
    others = [host for host, version in found.items() if version == usual]
    return [
        Finding(
            check=CHECK,
            level="fail" if package in MUST_BE_EQUAL else "warn",
            found=f"{package} is {version} on {host} and {usual} on {listed(others)}",
            advice=f"make {host} like the others",
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
    """Of this package's files: says more than a commit where files were changed since."""
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
