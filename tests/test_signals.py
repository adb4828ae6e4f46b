"""Commands that nohup starts outlive the terminal: they leave SIGHUP ignored."""

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext

import pytest

from harness.lab import run
from harness.lab.host import LabHost
from harness.tracking import ui

ENDS = (signal.SIGHUP, signal.SIGTERM)


@pytest.fixture(params=[True, False])
def ignored(request: pytest.FixtureRequest) -> Iterator[bool]:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if request.param else signal.SIG_DFL)
    yield request.param
    signal.signal(signal.SIGHUP, before)


def handled() -> list[bool]:
    """Whether this process does something of its own at the signals."""
    return [callable(signal.getsignal(number)) for number in ENDS]


def test_the_pages(ignored: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    popen = subprocess.Popen
    monkeypatch.setattr(ui, "_allowed", lambda _: "*")
    monkeypatch.setattr(
        subprocess, "Popen", lambda *_, **__: popen(["sleep", "60"], start_new_session=True)
    )
    with tempfile.TemporaryFile() as log, ui._server("sqlite://", "localhost", 1, log):
        assert handled() == [not ignored, True]


class Ssh:
    """Stands for ssh into a host; notes what is handled while it runs."""

    def __init__(self) -> None:
        self.stdin = os.fdopen(os.dup(1), "wb")
        self.found: list[bool] = []

    def wait(self) -> int:
        self.found = handled()
        return 0


def test_a_command_in_the_lab(ignored: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    ssh = Ssh()
    monkeypatch.setattr(run, "network", lambda _: nullcontext())
    monkeypatch.setattr(run, "_ssh", lambda *_, **__: [])
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: ssh)
    assert run._passing_on(LabHost(1, 1, (0,), direct=True), ["true"]) == 0
    assert ssh.found == [not ignored, True]
