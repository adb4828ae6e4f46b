"""Faults injected in a lab of four hosts: the doctor finds each one and reports no other host."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness.lab.host import STATE
from tests.labs import HARNESS, HERE, ROOT, harness, lab_of

HOSTS = "h1:1,h2:1,h3:1,h4:1"
EXPERIMENT = """
name: small
data: {dataset: synthetic, num_classes: 12, image_size: 8, synthetic_images: 64}
train: {batch_size: 4, steps: 2, threads: 1}
tracking: {enabled: false}
"""
OTHER_TORCH = """
import os, socket
if "HOROVOD_RANK" in os.environ and socket.gethostname() == "h3":
    import torch
    torch.__version__ = "2.12.0"
"""


@pytest.fixture(scope="module", autouse=True)
def lab() -> Iterator[None]:
    with lab_of("--hosts", "4", "--slots", "1", "--rate", "200mbit"):
        yield


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "small.yaml").write_text(EXPERIMENT)
    return tmp_path


def in_lab(
    here: Path, *arguments: str, path: Path | None = None
) -> "subprocess.CompletedProcess[str]":
    """Runs a command of this project in the first host, in the folder `here`."""
    folders = [str(ROOT)] + ([str(path)] if path else [])
    return subprocess.run(
        [*HARNESS, "lab", "run", "--", *HARNESS, *arguments],
        cwd=here,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


def examined(here: Path, path: Path | None = None) -> tuple[int, dict[str, Any]]:
    """Exit code and findings of the doctor on all hosts."""
    done = in_lab(here, "doctor", "small.yaml", "--json", "--hosts", HOSTS, path=path)
    try:
        (line,) = done.stdout.splitlines()
        return done.returncode, json.loads(line)
    except ValueError:
        pytest.fail(f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}")


def faults(found: dict[str, Any], *checks: str) -> list[str]:
    """Faults of these checks; if none is given, of all except compute, as hosts share cores."""
    return [
        each["found"]
        for each in found["findings"]
        if each["level"] == "fail"
        and (each["check"] in checks if checks else each["check"] != "compute")
    ]


@contextmanager
def line_of_hosts(host: str, old: str, new: str) -> Iterator[None]:
    """Changes the host's own /etc/hosts in place, as this file itself is mounted there."""
    file = HERE.seen(STATE / host / "etc" / "hosts")
    before = file.read_text()
    assert old in before
    file.write_text(before.replace(old, new))
    try:
        yield
    finally:
        file.write_text(before)


def test_four_hosts_without_a_fault(here: Path) -> None:
    code, found = examined(here)
    assert faults(found) == []
    assert code == int(found["verdict"] == "fail")
    assert len(found["links"]) == 6
    for link in found["links"]:
        # 200 Mbit/s are 25 MB/s, including headers.
        assert 20e6 < min(link["there"], link["back"]) <= max(link["there"], link["back"]) < 28e6


def test_a_link_at_a_tenth_and_a_host_with_little_of_a_core(here: Path) -> None:
    harness("lab", "rate", "20mbit", "h3")
    harness("lab", "share", "h2", "0.15")
    try:
        code, found = examined(here)
    finally:
        harness("lab", "rate", "200mbit", "h3")
        harness("lab", "share", "h2", "none")
    assert code == 1
    (link,) = faults(found)
    assert link.startswith("the link of h3: 2."), link
    assert "the other hosts' median is 2" in link
    assert any("rank 1 on h2 (cpu)" in fault for fault in faults(found, "compute"))


def test_a_name_that_leads_home_and_another_torch(here: Path) -> None:
    shim = here / "shim"
    shim.mkdir()
    (shim / "sitecustomize.py").write_text(OTHER_TORCH)
    with line_of_hosts("h4", "10.77.0.4 h4\n", "127.0.0.1 h4\n"):
        code, found = examined(here, shim)
    assert code == 1
    versions, names = faults(found)
    assert versions.startswith("torch is 2.12.0 on h3 and 2.13")
    assert versions.endswith("on h1, h2, h4")
    assert names == "the name h4 is 127.0.0.1 on h4, which other hosts cannot reach"


def test_training_does_not_start_on_such_hosts(here: Path) -> None:
    """Two ranks, one line, exit code 2, and no run's folder."""
    shim = here / "shim"
    shim.mkdir()
    (shim / "sitecustomize.py").write_text(OTHER_TORCH.replace("h3", "h2"))
    options = ["--hosts", "h1:1,h2:1", "--folder", str(here / "logs")]
    done = in_lab(here, "launch", *options, "small.yaml", path=shim)
    assert done.returncode == 2, done.stderr
    assert "harness: versions: torch is 2.12.0 on h2 and 2.13" in done.stderr
    assert "install on h2 the version of the others" in done.stderr
    assert not (here / "runs").exists()


def test_an_address_that_belongs_to_another_host(here: Path) -> None:
    """A wrong address on one host: the finding names this host and the one it does not reach."""
    with line_of_hosts("h2", "10.77.0.3 h3\n", "10.77.0.1 h3\n"):
        _, found = examined(here)
    (name,) = faults(found)
    assert name.startswith("h2 cannot reach h3 at 10.77.0.1 (")
