"""Facts about the machine of a run: versions, processors, memory. Never a secret."""

import importlib.metadata
import os
import platform
import resource
import socket
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch

from harness.measure.redaction import without_secrets

Fact = TypeVar("Fact")

PACKAGES = (
    *("torch", "torchvision", "horovod", "mlflow", "numpy", "pandas", "pillow", "simplejpeg"),
)
RECORDED_VARIABLES = ("HOROVOD_", "OMP_", "NCCL_", "GLOO_", "CUDA_VISIBLE_DEVICES")
"""Prefixes of variables that configure the libraries underneath."""


def environment(horovod: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The facts needed to judge or repeat a run; `horovod` are its build flags."""
    commit, dirty = _git()
    return {
        "versions": {"python": platform.python_version(), **_versions()},
        "git_commit": commit,
        "git_dirty": dirty,
        "host": known(socket.gethostname),
        "system": known(platform.platform),
        "cpu": known(_cpu_model),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)),
        "memory_bytes": known(lambda: psutil.virtual_memory().total),
        "gpus": known(_cards) or [],
        "torch_cuda": torch.version.cuda,
        "tf32": {
            "products": torch.backends.cuda.matmul.allow_tf32,
            "convolutions": torch.backends.cudnn.allow_tf32,
        },
        "horovod_build": dict(horovod or {}),
        "variables": {
            name: value
            for name, value in sorted(without_secrets(os.environ).items())
            if name.startswith(RECORDED_VARIABLES)
        },
    }


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory of this process: card memory on a GPU, otherwise host memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def known(fact: Callable[[], Fact]) -> Fact | None:
    """A fact that only describes a run; None if it is not available, for whatever reason: a
    container may have no /proc, no name, no permission."""
    try:
        return fact()
    except Exception:
        return None


def _cards() -> list[str]:
    return [torch.cuda.get_device_name(card) for card in range(torch.cuda.device_count())]


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _git() -> tuple[str | None, bool | None]:
    """Commit of the running source tree, and whether tracked files differ from it."""
    folder = Path(__file__).resolve().parent
    commit = _output("git", "-C", str(folder), "rev-parse", "HEAD")
    if commit is None:
        return None, None
    changes = _output("git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no")
    return commit, bool(changes)


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, ValueError, subprocess.SubprocessError):  # ValueError: not in UTF-8
        return None
    return done.stdout.strip()


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()
