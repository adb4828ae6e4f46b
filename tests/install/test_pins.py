"""Exactly the packages and versions of install/constraints.txt are installed."""

import importlib.metadata
import re
import sysconfig
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parents[2] / "install" / "constraints.txt"
OURS = {"harness", "horovod", "pip"}
"""This project, the package that install/horovod.py builds, and what came with Python."""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, str]:
    lines = [line.split("#")[0].strip() for line in CONSTRAINTS.read_text().splitlines()]
    pairs = [line.split("==") for line in lines if line]
    return {normal(name): version for name, version in pairs}


def installed() -> dict[str, str]:
    """Versions without their local part: torch 2.13.0+cpu and 2.13.0+cu130 are one version.

    Only of the folder that packages are installed into: setuptools, once it is imported, adds the
    copies of others that it brings to the path.
    """
    places = [sysconfig.get_path(kind) for kind in ("purelib", "platlib")]
    return {
        normal(package.metadata["Name"]): package.version.split("+")[0]
        for package in importlib.metadata.distributions(path=places)
    }


def test_every_installed_version_is_the_pinned_one() -> None:
    wanted, present = pins(), installed()
    assert len(wanted) > 100
    both = wanted.keys() & present.keys()
    different = {name: present[name] for name in both if present[name] != wanted[name]}
    assert different == {}


def test_nothing_is_installed_without_a_pin() -> None:
    # CUDA libraries come with a torch for CUDA, which pins them itself.
    loose = {
        name
        for name in installed().keys() - pins().keys() - OURS
        if not name.startswith(("nvidia-", "cuda-", "triton"))
    }
    assert loose == set()
