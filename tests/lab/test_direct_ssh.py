"""The ssh of hosts that are entered directly behaves like real ssh; needs no namespaces."""

import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from harness.lab import direct_ssh, direct_sshd
from tests.labs import words_of
from tests.waiting import wait_for

PATIENCE = 20
LISTENER = """
import pathlib, sys
pathlib.Path(sys.argv[1]).touch()
sys.stdin.read()
pathlib.Path(sys.argv[2]).touch()
"""


@pytest.fixture
def doors(tmp_path: Path) -> Iterator[Path]:
    """A folder with the socket of one host, h1."""
    words = [sys.executable, direct_sshd.__file__, str(tmp_path / "h1"), "/somewhere/bin"]
    with subprocess.Popen(words) as server:
        wait_for((tmp_path / "h1").exists)
        yield tmp_path
        server.kill()


def client(doors: Path, *words: str) -> list[str]:
    return [sys.executable, direct_ssh.__file__, str(doors), *words]


@contextmanager
def calling(doors: Path, *words: str, **files: int) -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(client(doors, *words), start_new_session=True, **files) as caller:
        try:
            yield caller
        finally:
            caller.kill()


def ssh(doors: Path, *words: str, given: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        client(doors, *words),
        input=given,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_input_both_outputs_and_the_exit_code_are_the_commands(doors: Path) -> None:
    done = ssh(doors, "h1", "cat; echo no >&2; exit 7", given="hello\n")
    assert (done.returncode, done.stdout, done.stderr) == (7, "hello\n", "no\n")


def test_as_horovodrun_calls_it(doors: Path) -> None:
    before = ["-o", "PasswordAuthentication=no", "-o", "StrictHostKeyChecking=no"]
    behind = ["-p", "22", "-i", "key", "-o", "ConnectTimeout=10"]
    done = ssh(doors, *before, "-q", "-l", "root", "root@h1", *behind, "echo", "-n", "$SHELL  $0")
    assert (done.returncode, done.stdout, done.stderr) == (0, "/bin/sh sh", "")


def test_a_command_gets_no_variables_of_its_callers(doors: Path) -> None:
    told = ssh(doors, "h1", "env").stdout.splitlines()
    names = {line.partition("=")[0] for line in told}
    assert names - {"PWD", "SHLVL", "_", "OLDPWD"} == {"HOME", "LOGNAME", "PATH", "SHELL", "USER"}
    assert any(line.startswith("PATH=/somewhere/bin:/usr/local/sbin:") for line in told)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["h2", "true"], "h2 is not one of its running hosts"),
        (["-z", "h1", "true"], "option -z not recognized; usage: ssh"),
        ([], "usage: ssh"),
    ],
)
def test_a_mistake_is_one_line_and_has_the_exit_code_of_ssh(
    doors: Path, words: list[str], told: str
) -> None:
    done = ssh(doors, *words)
    assert done.returncode == 255
    assert told in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_when_the_caller_is_ended_the_commands_input_ends(
    doors: Path, number: signal.Signals
) -> None:
    """A leash ends its command by this; no other sign of ssh's end reaches a command."""
    ready, ended = doors / "ready", doors / "ended"
    listener = f"exec {sys.executable} -c '{LISTENER}' {ready} {ended}"
    with calling(doors, "h1", listener, stdin=subprocess.PIPE) as caller:
        wait_for(ready.exists)
        caller.send_signal(number)
        assert caller.wait(PATIENCE) == -number
        wait_for(ended.exists, PATIENCE)


def test_a_command_that_ends_leaves_its_input_unread(doors: Path) -> None:
    with calling(doors, "h1", "exit 3", stdin=subprocess.PIPE) as caller:
        assert caller.wait(PATIENCE) == 3


def test_a_command_that_a_signal_ends_has_the_exit_code_of_ssh(doors: Path) -> None:
    assert ssh(doors, "h1", "kill -9 $$").returncode == 255


def test_what_a_command_leaves_running_keeps_nobody_waiting(doors: Path) -> None:
    pipe, got = doors / "pipe", doors / "got"
    os.mkfifo(pipe)
    assert ssh(doors, "h1", f"cat {pipe} < /dev/null > {got} 2>&1 &").returncode == 0
    pipe.write_text("later")  # waits until it is read
    wait_for(lambda: got.read_text() == "later", PATIENCE)


def test_with_what_serves_a_caller_the_caller_ends(doors: Path) -> None:
    (server,) = [each for each in psutil.process_iter() if str(doors / "h1") in words_of(each)]
    with calling(doors, "h1", "cat", stdin=subprocess.PIPE) as caller:
        wait_for(server.children)
        for each in server.children():
            each.kill()
        assert caller.wait(PATIENCE) == 255


def test_at_a_terminal_the_command_has_one_of_the_same_size(doors: Path) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (33, 77))
    line = "tty; stty size; read word; echo got $word; exit 4"
    with calling(doors, "-tt", "h1", line, stdin=theirs, stdout=theirs) as caller:
        os.close(theirs)
        os.write(ours, b"key\n")
        assert caller.wait(PATIENCE) == 4
    said = os.read(ours, 4096)
    os.close(ours)
    assert b"/dev/pts/" in said
    assert b"33 77" in said
    assert b"got key" in said
