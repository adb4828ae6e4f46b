"""Which runs are alive, of those that are not marked as ended."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.tracking import signs_of_life
from harness.tracking.signs_of_life import (
    BEAT_SECONDS,
    PROCESS_TAG,
    SILENT_SECONDS,
    TAG,
    UNMARKED_SILENT_SECONDS,
    Process,
    last_sign,
)

NOW = 1_800_000_000.0
ELSEWHERE = Process("far", "boot", "pid:[1]", 1, "1").text()


def test_this_process_is_alive_and_one_that_ended_is_not() -> None:
    own = Process.own()
    assert own.alive()
    assert own.pid == os.getpid()
    assert Process.parse(own.text()) == own
    ended = subprocess.Popen([sys.executable, "-c", ""])
    of_it = replace(own, pid=ended.pid, ticks=signs_of_life._ticks(ended.pid))
    while signs_of_life._ticks(ended.pid) != signs_of_life.UNKNOWN:
        pass  # until it is dead, even if its parent has not reaped it
    assert of_it.alive() is False
    ended.wait()
    assert of_it.alive() is False


def test_a_number_that_is_used_again_is_another_process() -> None:
    assert replace(Process.own(), ticks="1").alive() is False


@pytest.mark.parametrize("part", ["host", "boot", "namespace"])
def test_what_another_machine_runs_cannot_be_seen(part: str) -> None:
    assert replace(Process.own(), **{part: "other"}).alive() is None


@pytest.mark.parametrize(
    ("tags", "metric_age", "goes_on"),
    [
        # On this machine the process decides, not its heartbeat: the store may have been away.
        ({TAG: "1000", PROCESS_TAG: Process.own().text()}, 1e6, True),
        ({TAG: str(int(NOW)), PROCESS_TAG: replace(Process.own(), ticks="1").text()}, 0, False),
        # On another machine, or before this one was rebooted: the heartbeat.
        ({TAG: str(int(NOW - 3 * BEAT_SECONDS)), PROCESS_TAG: ELSEWHERE}, 1e6, True),
        ({TAG: str(int(NOW - SILENT_SECONDS - 2)), PROCESS_TAG: ELSEWHERE}, 1e6, False),
        ({TAG: str(int(NOW - SILENT_SECONDS - 2)), PROCESS_TAG: ELSEWHERE}, 1, True),
        # In a version without heartbeats: the last metric.
        ({}, UNMARKED_SILENT_SECONDS - 2, True),
        ({}, UNMARKED_SILENT_SECONDS + 2, False),
        # The other machine's clock is ahead.
        ({TAG: str(int(NOW + 60)), PROCESS_TAG: ELSEWHERE}, -60, True),
        # Written by something else.
        ({TAG: "soon", PROCESS_TAG: "one two"}, UNMARKED_SILENT_SECONDS + 2, False),
    ],
)
def test_when_a_run_was_last_heard_of(
    tags: dict[str, str], metric_age: float, goes_on: bool
) -> None:
    assert (last_sign(tags, NOW - metric_age, NOW) is None) == goes_on


@given(st.text())
def test_any_tag_is_read(text: str) -> None:
    found = Process.parse(text)
    assert found is None or Process.parse(found.text()) == found
    last_sign({TAG: text, PROCESS_TAG: text}, NOW, NOW)
