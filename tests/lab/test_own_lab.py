"""A lab for one command ends with it, even if it is killed; one that is up is left alone."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.labs import (
    EVERY_WAY,
    HERE,
    ROOT,
    USER,
    Way,
    in_ways,
    traces,
    unable,
)
from tests.waiting import wait_for

USING = """
import sys
from pathlib import Path
from harness.lab.own_lab import own_lab, run_in_lab
with own_lab(2, 1, *sys.argv[2:]):
    assert run_in_lab(["ssh", "h2", "true"]) == 0
    Path(sys.argv[1]).touch()
    run_in_lab(["sleep", "600"])
"""


def start(lab: Way, program: str, *words: str) -> "subprocess.Popen[str]":
    python = [word for word in lab.words if word not in ("-m", "harness")]
    return subprocess.Popen(
        [*python, "-c", program, *words, *lab.options],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@in_ways(*EVERY_WAY)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_nothing_is_left_when_its_command_is_ended(
    lab: Way, before: dict[str, object], number: signal.Signals, place: Path
) -> None:
    ready = place / "ready"
    command = start(lab, USING, str(ready))
    wait_for(ready.exists)
    command.send_signal(number)
    command.communicate(timeout=60)
    wait_for(lambda: traces() == before)


@in_ways(HERE, USER)
def test_a_lab_that_is_up_is_left_as_it_is(lab: Way, before: dict[str, object]) -> None:
    lab.up("--hosts", "1")
    command = start(lab, "from harness.lab.own_lab import own_lab\nown_lab(1, 1).__enter__()")
    _, said = command.communicate(timeout=60)
    assert said.splitlines()[-1].endswith("take it down first: harness lab down")
    assert lab.run("hostname") == "h1\n"


def test_where_none_can_be_made_the_reason_is_told() -> None:
    program = """
from harness.lab.own_lab import NoLab, own_lab
try:
    with own_lab(1, 1):
        pass
except NoLab as reason:
    print("reason:", reason)
"""
    command = unable(sys.executable, "-c", program)
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    if "as_user.py" in done.stderr:
        pytest.skip(f"no user namespace can be made here: {done.stderr.splitlines()[-1]}")
    assert "reason: harness lab without root needs a user namespace" in done.stdout, done.stderr
