"""Only one process trains the run of a folder; whatever ends it, the next one can."""

import fcntl
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.errors import UserError
from harness.tracking import only_one as only_one_module
from harness.tracking.only_one import LOCK, only_one
from tests.horovodrun import ROOT

HOLDS = """
import sys
from pathlib import Path
from harness.tracking.only_one import only_one
with only_one(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_by_another(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-c", HOLDS, str(folder)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        try:
            yield other
        finally:
            other.kill()


def test_a_second_one_is_told_who_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(only_one_module, "WAIT_SECONDS", 0.5)
    with held_by_another(tmp_path) as other:
        told = rf"is being trained by process {other.pid} on {re.escape(os.uname().nodename)}; "
        with pytest.raises(UserError, match=told), only_one(tmp_path):
            pass
        other.send_signal(signal.SIGKILL)
        other.wait()
        with only_one(tmp_path):
            assert (tmp_path / LOCK).read_text().startswith(f"process {os.getpid()} on ")
    assert list(tmp_path.iterdir()) == []


def test_who_waits_goes_on_when_the_other_has_ended(tmp_path: Path) -> None:
    with held_by_another(tmp_path) as other:
        assert other.stdin is not None
        threading.Timer(0.5, other.stdin.close).start()
        began = time.monotonic()
        with only_one(tmp_path):
            assert time.monotonic() - began > 0.4
            assert (tmp_path / LOCK).exists()


def test_without_locks_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError("no locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with only_one(tmp_path), only_one(tmp_path), only_one(tmp_path / "missing"):
        pass
    assert list(tmp_path.iterdir()) == []
