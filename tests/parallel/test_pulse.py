"""A rank's page shows another process what it does, and how long it may take."""

import os
import subprocess
import sys
import time

import pytest

from harness.parallel.pulse import (
    MARK,
    SLOW,
    SPARE,
    VARIABLE,
    Pulse,
    Report,
    Watched,
    open_pulse,
    parse,
)

PROGRAM = """
import time
from harness.parallel.pulse import open_pulse
with open_pulse(60.0) as pulse:
    pulse.show("forward")
    print(flush=True); input()
    pulse.window(12, slow=False)
    pulse.show("slice_wait")
    print(flush=True); input()
    pulse.pause("the pause after 13 windows")
    print(flush=True); input()
print(flush=True); input()
"""


def test_another_process_sees_stage_phase_and_limit() -> None:
    watched = Watched()
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[watched.descriptor],
        env={**os.environ, VARIABLE: str(watched.descriptor)},
    ) as rank:
        assert rank.stdin is not None
        assert rank.stdout is not None
        seen = []
        for _ in range(4):
            rank.stdout.readline()
            assert watched.pid == rank.pid
            seen.append(watched.report(stopped=False))
            rank.stdin.write(b"\n")
            rank.stdin.flush()
    limits = [each.limit for each in seen]
    assert limits == [0.0, 60.0, SLOW * 60.0, 0.0]
    assert [each.stage for each in seen] == ["", "window 12", "the pause after 13 windows", ""]
    assert seen[1].phase == "slice_wait"
    assert seen[1].waits
    assert not any(each.stuck for each in seen)


def test_what_took_long_once_may_take_long_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    watched = Watched()
    pulse = pulse_of(watched, 60.0)
    pulse.window(0, slow=True)
    pulse.show("forward")
    now += 100  # in a window
    pulse.show("backward")
    pulse.pause("evaluation")
    now += 1000  # in a pause, which shows nothing about windows
    pulse.window(1, slow=False)
    assert watched.report(stopped=False).limit == SPARE * 100
    now += SPARE * 100 + 1
    assert watched.report(stopped=False).stuck


def pulse_of(watched: Watched, seconds: float) -> Pulse:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv(VARIABLE, str(os.dup(watched.descriptor)))
        opened = open_pulse(seconds)
        pulse = opened.__enter__()
    HELD.append(opened)
    return pulse


HELD: list[object] = []
"""Contexts that stay open, because a closed one would end the page."""


def test_without_a_leash_or_a_limit_it_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched()
    with open_pulse(60.0) as pulse:
        pulse.window(3, slow=False)
    monkeypatch.setenv(VARIABLE, str(watched.descriptor))
    with open_pulse(0.0) as pulse:
        pulse.window(3, slow=False)
    assert watched.pid == 0
    assert VARIABLE not in os.environ


def test_a_report_is_found_behind_other_text() -> None:
    report = Report(3.5, 60.0, "data", 'window "7"', stopped=False, crossed=12)
    assert parse("half a line" + report.line()) == report
    assert parse("an ordinary line") is None


@pytest.mark.parametrize("spoilt", ["{", "[]", "null", '{"seconds": 1}', "{}", "{} and more"])
def test_a_report_with_other_text_in_it_is_an_ordinary_line(spoilt: str) -> None:
    """Otherwise the thread that reads what ranks print would end, and they would wait for it."""
    assert parse(MARK + spoilt) is None
