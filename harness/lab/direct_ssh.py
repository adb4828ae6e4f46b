"""The `ssh` of hosts that are entered directly: passes a command to another host's direct_sshd.py.

`python direct_ssh.py DOORS [OPTION ...] [USER@]HOST [OPTION ...] [COMMAND ...]`: DOORS is a folder
with the hosts' sockets by name; the rest are ssh's arguments, as far as horovodrun and the harness
need them. As with ssh, the command's input ends when this process ends (at a terminal, the
command's session does), and the exit code is 255 if the command has none. Needs no packages.
"""

import getopt
import json
import os
import select
import signal
import socket
import sys
import termios
import threading
import tty
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

OPTIONS = "i:l:o:p:qtT"
"""ssh's options that are accepted, for getopt. Only -t, -tt and -T have an effect: all hosts have
the same user, and no key is needed."""
FAILED = 255
"""Exit code of ssh if the command has none."""
PORTION = 1 << 16


def main(doors: Path, words: Sequence[str]) -> int:
    """The command's exit code."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        options, rest = getopt.getopt(list(words), OPTIONS)
        name, *rest = rest
        more, command = getopt.getopt(rest, OPTIONS)
    except (getopt.GetoptError, ValueError) as error:
        return _failed(f"ssh of the lab: {error}; usage: ssh [-tT] [USER@]HOST [COMMAND]")
    terminal = _wants_terminal([option for option, _ in options + more], bool(command))
    with socket.socket(socket.AF_UNIX) as door:
        try:
            door.connect(str(doors / name.rpartition("@")[2]))
        except OSError as error:
            return _failed(
                f"ssh of the lab: {name} is not one of its running hosts: {error.strerror}"
            )
        line = " ".join(command)
        return _at_terminal(door, line) if terminal else _with_files(door, line)


def _wants_terminal(options: Sequence[str], has_command: bool) -> bool:
    """Whether the command gets a terminal, by ssh's rules.

    -T: never; -tt: always; -t, or no command: if standard input is one.
    """
    wanted = "-t" in options or not has_command
    return "-T" not in options and (options.count("-t") > 1 or (wanted and os.isatty(0)))


def _failed(line: str) -> int:
    print(line, file=sys.stderr)
    return FAILED


def _with_files(door: socket.socket, line: str) -> int:
    # The command gets a pipe in place of this process's input, so that its input ends with this
    # process; its output and error are this process's own files.
    theirs, ours = os.pipe()
    _ask(door, [theirs, 1, 2], line, terminal="")
    os.close(theirs)

    def feed() -> None:
        _copy(0, ours)
        os.close(ours)

    threading.Thread(target=feed, daemon=True).start()
    return _answer(door)


def _at_terminal(door: socket.socket, line: str) -> int:
    ours, theirs = os.openpty()
    with _raw(ours):
        _ask(door, [theirs] * 3, line, os.environ.get("TERM", "dumb"))
        os.close(theirs)
        threading.Thread(target=_copy, args=(0, ours), daemon=True).start()
        sources = [ours, door.fileno()]
        while ours in select.select(sources, [], [])[0]:
            try:
                _write(1, os.read(ours, PORTION))
            except OSError:  # the command has closed the terminal: only its exit code is to come
                sources.remove(ours)
        return _answer(door)


def _ask(door: socket.socket, files: Sequence[int], line: str, terminal: str) -> None:
    socket.send_fds(door, [b"\0"], files)
    door.sendall(json.dumps({"line": line, "terminal": terminal}).encode())
    door.shutdown(socket.SHUT_WR)


def _answer(door: socket.socket) -> int:
    with suppress(ConnectionResetError):  # the host has been taken down
        if code := door.recv(1):
            return code[0]
    return FAILED


def _copy(source: int, target: int) -> None:
    with suppress(OSError):  # the reading end is closed
        while portion := os.read(source, PORTION):
            _write(target, portion)


def _write(target: int, portion: bytes) -> None:
    while portion:
        portion = portion[os.write(target, portion) :]


@contextmanager
def _raw(terminal: int) -> Iterator[None]:
    """Puts this process's terminal, if it has one, into raw mode: every key goes to the command.

    The command's terminal keeps the size of this one.
    """
    if not os.isatty(0):
        yield
        return

    def fit(*_: object) -> None:
        termios.tcsetwinsize(terminal, termios.tcgetwinsize(0))

    def leave(*_: object) -> None:
        sys.exit(FAILED)

    fit()
    before = termios.tcgetattr(0)
    signal.signal(signal.SIGWINCH, fit)
    signal.signal(signal.SIGTERM, leave)
    try:
        tty.setraw(0, termios.TCSADRAIN)  # keeps what was typed ahead
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
