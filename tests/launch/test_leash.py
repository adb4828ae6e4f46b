"""A held command ends with its launcher, with all that it started, also if ssh shares the input."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harness.launch import leash
from harness.parallel.pulse import parse
from tests.labs import processes_with
from tests.waiting import wait_for

LEASH = [sys.executable, str(Path(leash.__file__))]


@pytest.mark.parametrize("blocking", [True, False])
def test_the_command_ends_when_the_input_does(blocking: bool, tmp_path: Path) -> None:
    """An ssh that shares the input sets it to non-blocking."""
    read, write = os.pipe()
    os.set_blocking(read, blocking)
    ready = tmp_path / "ready"
    held = subprocess.Popen([*LEASH, "sh", "-c", f"touch {ready}; exec sleep 600"], stdin=read)
    os.close(read)
    wait_for(ready.exists)
    assert held.poll() is None
    os.close(write)
    assert held.wait(20) == 128 + signal.SIGTERM


def test_nothing_that_the_command_started_outlives_it(tmp_path: Path) -> None:
    script = f"python3 -c 'import time; time.sleep(600)' {tmp_path} & exit 3"
    held = subprocess.Popen([*LEASH, "sh", "-c", script], stdin=subprocess.PIPE)
    assert held.wait(20) == 3
    wait_for(lambda: not processes_with(str(tmp_path)), 10)
    assert held.stdin is not None
    held.stdin.close()


@pytest.mark.parametrize("ignored", [True, False])
def test_a_byte_is_a_signal_for_the_whole_group(ignored: bool, tmp_path: Path) -> None:
    """Even if the launcher ignores the signal, as commands in a shell's background do."""
    ready = tmp_path / "ready"
    script = f"trap 'exit 9' INT; touch {ready}; while :; do sleep 0.1; done"
    before = signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        held = subprocess.Popen([*LEASH, "sh", "-c", script], stdin=subprocess.PIPE)
    finally:
        signal.signal(signal.SIGINT, before)
    wait_for(ready.exists)
    assert held.stdin is not None
    held.stdin.write(bytes([signal.SIGINT]))
    held.stdin.flush()
    assert held.wait(20) == 9
    held.stdin.close()


def test_a_stopped_command_is_told_and_that_it_goes_on(tmp_path: Path) -> None:
    """A stopped process cannot report it, and the others wait for it for minutes."""
    pid = tmp_path / "pid"
    script = f"echo $$ > {pid}.part; mv {pid}.part {pid}; exec sleep 600"
    held = subprocess.Popen(
        [*LEASH, "sh", "-c", script], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(pid.exists)
    number = int(pid.read_text())
    assert held.stderr is not None
    assert held.stdin is not None
    os.kill(number, signal.SIGSTOP)
    assert held.stderr.readline().strip() == leash.STOPPED
    os.kill(number, signal.SIGCONT)
    assert held.stderr.readline().strip() == leash.RESUMED
    held.stdin.close()
    assert held.wait(20) == 128 + signal.SIGTERM
    held.stderr.close()


def test_a_folder_that_a_host_lacks_is_told(tmp_path: Path) -> None:
    command = [*LEASH, leash.IN, str(tmp_path / "none"), "pwd", "-P"]
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as input_:
        done = subprocess.run(
            command, cwd=tmp_path, stdin=input_.stdout, capture_output=True, text=True, check=True
        )
        input_.kill()
    assert done.stdout == f"{tmp_path}\n"
    assert f"has no folder {tmp_path / 'none'} (No such file or directory)" in done.stderr


WATCHED = """
import time
from harness.parallel.pulse import open_pulse
with open_pulse(60) as pulse:
    pulse.window(7, slow=False)
    time.sleep({seconds})
    import os
    os._exit({code})
"""


@pytest.mark.parametrize("code", [0, 3])
def test_the_last_report_is_that_the_rank_has_ended(code: int) -> None:
    """A launcher that had heard of it, and of others later, would take it for silent."""
    program = WATCHED.format(seconds=leash.LOOK_SECONDS + 1, code=code)
    command = [*LEASH, leash.PULSE, sys.executable, "-c", program]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as held:
        assert held.stdout is not None
        reports = [parse(line) for line in held.stdout]
        assert held.wait(20) == code
    assert [report.limit for report in reports if report] == [60.0] * (len(reports) - 1) + [0.0]
    assert len(reports) > 1
