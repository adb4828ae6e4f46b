"""Output that has nowhere to go ends nothing: a terminal that goes away, a pipe without a reader, a
full disk, no output at all, a terminal without the characters."""

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.horovodrun import ROOT

PROGRAM = """
import logging, os, sys, time
from pathlib import Path
from tqdm import tqdm
from harness.terminal import lasting_output

def run():
    progress = tqdm(total=20, mininterval=0.0)
    print("begun", flush=True)
    time.sleep(0.5)  # the other end goes away
    for number in range(20):
        print("a line \u00b7 with a dot", number)
        print("to the other stream \u00b7", file=sys.stderr, flush=True)
        progress.update()
        progress.write("beside the bar")
        logging.warning("a warning")
    os.write(1, b"by C code")
    sys.stdout.flush()
    progress.close()
    file = open("record", "w")
    assert file.fileno() > 2
    file.write("whole")
    file.close()
    return 0

with lasting_output():
    code = run()
sys.exit(code)
"""


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


def start(
    folder: Path, redirection: str = "", **variables: str
) -> "subprocess.CompletedProcess[bytes]":
    """By a shell, as users redirect."""
    (folder / "program.py").write_text(PROGRAM)
    line = f'"{sys.executable}" program.py {redirection}'
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"],
        cwd=folder,
        env=environment(**variables),
        capture_output=True,
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize(
    "redirection",
    [
        "| head -1",
        "2>&1 | head -1",
        "| true",
        "> /dev/full",
        "2> /dev/full > /dev/full",
        ">&-",
        "2>&-",
        "<&- >&- 2>&-",
    ],
)
def test_the_work_is_done_and_the_exit_code_right(tmp_path: Path, redirection: str) -> None:
    ended = start(tmp_path, redirection)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "record").read_text() == "whole"
    for sign in (b"Traceback", b"Error", b"Exception"):
        assert sign not in ended.stderr


@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1:strict"},
        {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    ],
)
def test_a_character_that_the_terminal_lacks_is_replaced(
    tmp_path: Path, variables: dict[str, str]
) -> None:
    ended = start(tmp_path, **variables)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count(b"a line ") == 20
    assert ended.stdout.count(b"with a dot") == 20


def on_a_terminal_that_goes_away(command: Sequence[str], folder: Path) -> int:
    """The exit code of a command that does not mind SIGHUP."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(folder)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        os.execve(command[0], command, environment())
    end = time.monotonic() + 120
    seen = b""
    while b"begun" not in seen:
        assert time.monotonic() < end
        if select.select([terminal], [], [], 0.2)[0]:
            seen += os.read(terminal, 1 << 16)
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_terminal_that_goes_away(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    assert on_a_terminal_that_goes_away([sys.executable, "program.py"], tmp_path) == 0
    assert (tmp_path / "record").read_text() == "whole"


FAILS = """
import sys
from harness.terminal import lasting_output
with lasting_output():
    print("see http://ann:pa55word@host:5000/#/1")
    print("or //t0ken@host", file=sys.stderr)
    raise RuntimeError("no answer from http://ann:pa55word@host?token=t0ken")
"""


def test_no_secret_is_printed_also_by_an_error_that_ends_the_process(tmp_path: Path) -> None:
    (tmp_path / "fails.py").write_text(FAILS)
    ended = subprocess.run(
        [sys.executable, "fails.py"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == 1
    whole = ended.stdout + ended.stderr
    assert "pa55word" not in whole
    assert "t0ken" not in whole
    assert ended.stdout == "see http://host:5000/#/1\n"
    assert ended.stderr.startswith("or //host\nTraceback")
    assert ended.stderr.endswith("RuntimeError: no answer from http://host?token=***\n")
