"""Locks on files: who waits, for how long, and where there are none."""

import fcntl
import threading
import time
from pathlib import Path

import pytest

from harness.locking import lock


def test_one_holds_it_and_the_other_waits_as_long_as_it_may(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with path.open("w") as one, path.open("w") as other:
        assert lock(one)
        began = time.monotonic()
        assert not lock(other, wait_seconds=0)
        assert not lock(other, wait_seconds=0.3)
        assert time.monotonic() - began >= 0.3
        threading.Timer(0.3, one.close).start()
        assert lock(other, wait_seconds=60)
    with path.open("w") as one, path.open("w") as other:
        assert lock(one)
        threading.Timer(0.3, one.close).start()
        assert lock(other), "without a limit it waits until the other ends"


def test_where_there_are_no_locks_nothing_is_kept_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise OSError("no locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with (tmp_path / "lock").open("w") as one, (tmp_path / "lock").open("w") as other:
        assert lock(one)
        assert lock(other)
